use super::*;

fn row(step: u64) -> HistoryRow {
    HistoryRow { step, loss: 1.5, learning_rate: 1e-5, ..HistoryRow::default() }
}

fn steps(directory: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(directory.join("log.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|row| row["step"].as_u64().unwrap()).collect()
}

#[test]
fn a_resumed_log_has_every_step_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), 0).unwrap();
    (1..=5).for_each(|step| log.row(&row(step), None).unwrap());
    drop(log);
    let mut log = Log::open(dir.path(), 3).unwrap();
    log.row(&row(4), None).unwrap();
    assert_eq!(steps(dir.path()), [1, 2, 3, 4]);
    Log::open(dir.path(), 0).unwrap();
    assert_eq!(steps(dir.path()), [0u64; 0]);
}

/// What a killed process or another program may leave at the end.
#[test]
fn torn_and_foreign_lines_are_cut() {
    for rest in ["{\"step\":3,\"lo", "{\"step\":3}", "\0\0\0\n", "[]\n", "\n{\"step\":3}\n"] {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("{{\"step\":1}}\n{{\"step\":2}}\n{rest}");
        std::fs::write(dir.path().join("log.jsonl"), text).unwrap();
        let mut log = Log::open(dir.path(), 9).unwrap();
        log.row(&row(10), None).unwrap();
        assert_eq!(steps(dir.path()), [1, 2, 10], "{rest:?}");
    }
}
