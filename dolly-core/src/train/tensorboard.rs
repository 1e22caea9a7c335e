//! Event files that TensorBoard reads.
//!
//! A file is a sequence of TFRecords: length (u64, little-endian), masked CRC-32C of the length,
//! data, masked CRC-32C of the data. The data is a protobuf `Event` (tensorflow/core/util/
//! event.proto): `wall_time` = 1 (double), `step` = 2 (int64), `file_version` = 3 (string),
//! `summary` = 5 (`value` = 1, of `tag` = 1 and `simple_value` = 2), `session_log` = 7
//! (`status` = 1; START is 1).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes one event file.
#[derive(Debug)]
pub(crate) struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Begins a file in `directory` at `wall_time` (seconds since 1970).
    ///
    /// After a resume at `resumed` steps, TensorBoard is told to forget the later ones that an
    /// earlier file may hold.
    pub fn create(directory: &Path, wall_time: f64, resumed: Option<u64>) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))?;
        let (seconds, process) = (wall_time as u64, std::process::id());
        let mut number = 0u32;
        loop {
            let name = format!("events.out.tfevents.{seconds:010}.dolly.{process}.{number}");
            let path = directory.join(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    let mut writer = Self { file, path };
                    writer.record(&version(wall_time))?;
                    if let Some(step) = resumed {
                        writer.record(&session_start(wall_time, step.saturating_add(1)))?;
                    }
                    return Ok(writer);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(Error::io(path, error)),
            }
        }
    }

    /// Appends scalars of one step.
    pub fn scalars(&mut self, wall_time: f64, step: u64, scalars: &[(String, f32)]) -> Result<()> {
        self.record(&summary(wall_time, step, scalars))
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(&framed(data)).map_err(|error| Error::io(&self.path, error))
    }
}

/// `data` as a TFRecord.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// TFRecord's mask keeps the CRC of data that holds CRCs from being degenerate.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli; RFC 3720, B.4), reflected polynomial 0x82f63b78, bit by bit: event files
/// are a few bytes a step.
fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !data.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn version(wall_time: f64) -> Vec<u8> {
    let mut event = double(1, wall_time);
    event.extend(bytes(3, b"brain.Event:2"));
    event
}

fn session_start(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = double(1, wall_time);
    event.extend(integer(2, step));
    event.extend(bytes(7, &integer(1, 1)));
    event
}

fn summary(wall_time: f64, step: u64, scalars: &[(String, f32)]) -> Vec<u8> {
    let mut values = Vec::new();
    for (tag, value) in scalars {
        let mut scalar = bytes(1, tag.as_bytes());
        scalar.push(key(2, 5));
        scalar.extend(value.to_le_bytes());
        values.extend(bytes(1, &scalar));
    }
    let mut event = double(1, wall_time);
    event.extend(integer(2, step));
    event.extend(bytes(5, &values));
    event
}

/// A field's key; all numbers here are below 16, so it is one byte.
fn key(field: u8, wire: u8) -> u8 {
    (field << 3) | wire
}

fn double(field: u8, value: f64) -> Vec<u8> {
    let mut out = vec![key(field, 1)];
    out.extend(value.to_le_bytes());
    out
}

fn integer(field: u8, value: u64) -> Vec<u8> {
    let mut out = vec![key(field, 0)];
    varint(value, &mut out);
    out
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![key(field, 2)];
    varint(value.len() as u64, &mut out);
    out.extend(value);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn crc_of_the_rfc() {
        let rising: Vec<u8> = (0..32).collect();
        let falling: Vec<u8> = (0..32).rev().collect();
        let cases: [(&[u8], u32); 4] = [
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&rising, 0x46dd_794e),
            (&falling, 0x113f_db5c),
        ];
        for (data, wanted) in cases {
            assert_eq!(crc32c(data), wanted);
        }
    }

    /// Made by `tests/golden/make_trainer.py` with TensorBoard's own writer.
    #[test]
    fn bytes_are_those_of_tensorboard() {
        let golden = include_bytes!("../../../tests/golden/trainer/events.bin");
        let scalars =
            [("train/loss".to_owned(), 2.5f32), ("train/learning_rate".to_owned(), 1e-5f32)];
        let records = [
            version(1_700_000_000.25),
            session_start(1_700_000_000.5, 301),
            summary(1_700_000_001.0, 301, &scalars),
        ];
        let written: Vec<u8> = records.iter().flat_map(|record| framed(record)).collect();
        assert_eq!(written, golden);
    }

    #[test]
    fn files_of_one_second_do_not_collide() {
        let dir = tempfile::tempdir().unwrap();
        for resumed in [None, Some(300)] {
            let mut writer = EventWriter::create(dir.path(), 1_700_000_000.0, resumed).unwrap();
            writer.scalars(1_700_000_001.0, 301, &[("train/loss".to_owned(), 2.5)]).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
