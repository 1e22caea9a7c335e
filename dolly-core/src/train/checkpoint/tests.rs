use super::*;

fn with(steps: &[u64]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    steps.iter().for_each(|step| std::fs::create_dir(path(dir.path(), *step)).unwrap());
    dir
}

#[test]
fn the_best_the_newest_and_later_ones_stay() {
    let left = |newest, best, limit| {
        let dir = with(&[1, 2, 3, 4, 5, 60]);
        prune(dir.path(), newest, best, limit).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), list(dir.path()).unwrap().len());
        list(dir.path()).unwrap()
    };
    assert_eq!(left(60, None, 2), [60, 5]);
    assert_eq!(left(60, Some(2), 2), [60, 2]);
    assert_eq!(left(60, Some(2), 1), [60, 2]);
    assert_eq!(left(60, Some(60), 1), [60]);
    assert_eq!(left(60, Some(1), 9), [60, 5, 4, 3, 2, 1]);
    // A damaged checkpoint of a step that is not made again yet.
    assert_eq!(left(5, Some(1), 3), [60, 5, 4, 1]);
}

#[test]
fn only_own_names_are_checkpoints() {
    let dir = with(&[7]);
    let others =
        ["checkpoint-", "checkpoint-007", "checkpoint-+7", "checkpoint-x", ".checkpoint-8"];
    for name in others.into_iter().chain([".checkpoint-9.1-0.partial", "other.partial"]) {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    assert_eq!(list(dir.path()).unwrap(), [7]);
    let (ours, theirs) = (".model.safetensors.123-4.partial", ["x.1-2.partial", ".x.1-.partial"]);
    for name in [ours].into_iter().chain(theirs) {
        std::fs::write(dir.path().join(name), b"").unwrap();
    }
    clean(dir.path()).unwrap();
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, others.len() + 2 + theirs.len());
    assert!(!dir.path().join(ours).exists());
}
