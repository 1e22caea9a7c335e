//! What a run knows beside weights and moments: all it takes to go on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, try_vec};

/// Format of the files below; other numbers are refused.
pub(crate) const FORMAT: u32 = 1;
/// Bytes of a row in [`encode_history`].
const ROW_BYTES: usize = 56;

/// One step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct HistoryRow {
    /// Number of the step, from 1.
    pub step: u64,
    /// Epochs gone after it.
    pub epoch: f64,
    /// Mean loss over the step's predicted tokens, before its update.
    pub loss: f64,
    /// Mean loss on the rows kept for evaluation, where one followed the step.
    pub eval_loss: Option<f64>,
    /// Learning rate of its update.
    pub learning_rate: f64,
    /// Norm of its gradients before clipping.
    pub grad_norm: f64,
    /// Tokens of its sequences per second; the only number here that two equal runs differ in.
    pub tokens_per_second: f64,
}

/// A number with the step it belongs to.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct BestLoss {
    /// The step.
    pub step: u64,
    /// Mean evaluation loss after it.
    pub eval_loss: f64,
}

/// Where a run stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct State {
    /// Steps made; order, learning rate and dropout follow from it and the seed.
    pub step: u64,
    pub history: Vec<HistoryRow>,
    /// Lowest evaluation loss so far.
    pub best: Option<BestLoss>,
    /// Lowest evaluation loss of a step that has a checkpoint.
    pub best_saved: Option<BestLoss>,
    /// Evaluations since `best`.
    pub evaluations_since_best: u64,
}

/// What must be the same for a run to go on from a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The options that decide the weights.
    pub options: BTreeMap<String, String>,
    pub seed: u64,
    /// Digest of the weights the run began with.
    pub base: String,
    /// Digest of the sequences it trains on.
    pub data: String,
}

/// `state.json`. Floats stand as text: the shortest decimal that reads back as the same number.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StateFile {
    pub format: u32,
    pub step: u64,
    /// Epoch of the next step, and its first row in that epoch's order: they follow from `step` and
    /// stand here to be checked.
    pub epoch: u64,
    pub row: u64,
    pub seed: u64,
    pub options: BTreeMap<String, String>,
    pub base: String,
    pub data: String,
    pub best: Option<(u64, String)>,
    pub best_saved: Option<(u64, String)>,
    pub evaluations_since_best: u64,
}

/// A [`BestLoss`] as [`StateFile`] has it.
pub(crate) fn best_to_text(best: Option<BestLoss>) -> Option<(u64, String)> {
    best.map(|best| (best.step, best.eval_loss.to_string()))
}

/// The inverse of [`best_to_text`]; the text where it is no finite number.
pub(crate) fn best_from_text(best: Option<(u64, String)>) -> Result<Option<BestLoss>, String> {
    let Some((step, text)) = best else { return Ok(None) };
    match text.parse::<f64>() {
        Ok(eval_loss) if eval_loss.is_finite() => Ok(Some(BestLoss { step, eval_loss })),
        _ => Err(format!("{text:?} is no loss")),
    }
}

/// Rows one after the other, each seven little-endian numbers of eight bytes; NaN is no evaluation.
///
/// Binary, because a run of a million steps is read and written whole.
pub(crate) fn encode_history(history: &[HistoryRow]) -> Result<Vec<u8>> {
    let mut bytes = try_vec(history.len().saturating_mul(ROW_BYTES), "the history")?;
    for row in history {
        bytes.extend(row.step.to_le_bytes());
        let eval_loss = row.eval_loss.unwrap_or(f64::NAN);
        let numbers = [row.epoch, row.loss, eval_loss, row.learning_rate, row.grad_norm];
        for number in numbers.into_iter().chain([row.tokens_per_second]) {
            bytes.extend(number.to_le_bytes());
        }
    }
    Ok(bytes)
}

/// The inverse of [`encode_history`]: `steps` rows, numbered from 1.
pub(crate) fn decode_history(bytes: &[u8], steps: u64) -> Result<Vec<HistoryRow>, String> {
    let wanted = usize::try_from(steps).ok().and_then(|steps| steps.checked_mul(ROW_BYTES));
    if wanted != Some(bytes.len()) {
        return Err(format!("{} bytes for {steps} steps of {ROW_BYTES} bytes", bytes.len()));
    }
    let count = bytes.len() / ROW_BYTES;
    let mut rows = try_vec(count, "the history").map_err(|error: Error| error.to_string())?;
    for (index, row) in bytes.chunks_exact(ROW_BYTES).enumerate() {
        let at = |n: usize| row.get(8 * n..8 * n + 8).and_then(|b| b.first_chunk::<8>().copied());
        let number = |n: usize| at(n).map_or(f64::NAN, f64::from_le_bytes);
        let step = at(0).map_or(0, u64::from_le_bytes);
        if step != index as u64 + 1 {
            return Err(format!("row {index} is of step {step}"));
        }
        rows.push(HistoryRow {
            step,
            epoch: number(1),
            loss: number(2),
            eval_loss: Some(number(3)).filter(|loss| !loss.is_nan()),
            learning_rate: number(4),
            grad_norm: number(5),
            tokens_per_second: number(6),
        });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn history_and_best_round_trip(losses in prop::collection::vec(0.0f64..20.0, 0..20)) {
            let history: Vec<HistoryRow> = losses
                .iter()
                .enumerate()
                .map(|(index, loss)| HistoryRow {
                    step: index as u64 + 1,
                    loss: *loss,
                    eval_loss: (index % 2 == 0).then_some(loss / 3.0),
                    ..HistoryRow::default()
                })
                .collect();
            let bytes = encode_history(&history).unwrap();
            prop_assert_eq!(decode_history(&bytes, losses.len() as u64).unwrap(), history);
            for loss in losses {
                let best = Some(BestLoss { step: 3, eval_loss: loss });
                prop_assert_eq!(best_from_text(best_to_text(best)).unwrap(), best);
            }
        }
    }

    #[test]
    fn damage_is_told() {
        let row = HistoryRow { step: 1, ..HistoryRow::default() };
        let bytes = encode_history(&[row]).unwrap();
        for (bytes, steps) in [(&bytes[1..], 1), (&bytes[..], 2), (&bytes[..], u64::MAX)] {
            assert!(decode_history(bytes, steps).is_err());
        }
        assert!(decode_history(&[0; ROW_BYTES], 1).unwrap_err().contains("step 0"));
        for text in ["NaN", "inf", "", "x"] {
            assert!(best_from_text(Some((1, text.to_owned()))).is_err());
        }
    }
}
