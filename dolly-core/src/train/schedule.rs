//! How the learning rate moves over a run: the formulas of `transformers.get_scheduler`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The course of the learning rate after the warm-up, which rises linearly from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Schedule {
    /// Stays at the peak: the original's.
    #[default]
    Constant,
    /// Falls linearly to 0 at the last step.
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
}

impl Schedule {
    /// `constant`, `linear` or `cosine`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        }
    }

    /// The share of the peak rate that update number `update` (from 0) uses, of `total` updates of
    /// which `warmup` warm up.
    ///
    /// The first update of a warm-up has rate 0, as in transformers.
    ///
    /// ```
    /// use dolly_core::train::Schedule;
    /// assert_eq!(Schedule::Linear.factor(5, 10, 110), 0.5);
    /// assert_eq!(Schedule::Linear.factor(60, 10, 110), 0.5);
    /// assert_eq!(Schedule::Constant.factor(60, 10, 110), 1.0);
    /// ```
    pub fn factor(self, update: u64, warmup: u64, total: u64) -> f64 {
        if update < warmup {
            return update as f64 / warmup.max(1) as f64;
        }
        let span = total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => total.saturating_sub(update) as f64 / span,
            Self::Cosine => {
                let progress = (update - warmup) as f64 / span;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::Constant, Self::Linear, Self::Cosine];
        let found = all.into_iter().find(|schedule| schedule.name() == name);
        found.ok_or_else(|| Error::option("schedule", name, "constant, linear or cosine"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/golden/make_trainer.py` from `transformers.get_scheduler`.
    const GOLDEN: &str = include_str!("../../../tests/golden/trainer/schedules.json");

    #[test]
    fn factors_are_those_of_transformers() {
        let cases: Vec<serde_json::Value> = serde_json::from_str(GOLDEN).unwrap();
        assert!(cases.len() >= 9);
        for case in cases {
            let schedule: Schedule = case["name"].as_str().unwrap().parse().unwrap();
            let (warmup, total) =
                (case["warmup"].as_u64().unwrap(), case["total"].as_u64().unwrap());
            for (update, wanted) in case["factors"].as_array().unwrap().iter().enumerate() {
                let (found, wanted) =
                    (schedule.factor(update as u64, warmup, total), wanted.as_f64().unwrap());
                assert!((found - wanted).abs() <= 1e-12, "{case}: update {update}: {found}");
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for name in ["constant", "linear", "cosine"] {
            assert_eq!(name.parse::<Schedule>().unwrap().to_string(), name);
        }
        assert!(matches!("step".parse::<Schedule>(), Err(Error::InvalidOption { .. })));
    }
}
