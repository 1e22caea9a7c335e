//! Files that lie: each class is refused with an error that names the file and says what is wrong.

use super::build::{Entry, Gguf, Program, entry, safetensors, text, torch, zip, zip64};
use super::*;

/// A class of malformed file: its name, extension, bytes, and words the error must contain.
type Case = (&'static str, &'static str, Vec<u8>, &'static str);

#[track_caller]
fn refuse(cases: Vec<Case>) {
    let folder = tempfile::tempdir().unwrap();
    for (class, extension, bytes, words) in cases {
        let path = folder.path().join(format!("bad.{extension}"));
        std::fs::write(&path, bytes).unwrap();
        let error = open(&path).map(|_| ()).expect_err(class);
        let text = error.to_string();
        assert!(text.contains(words), "{class}: {text:?} does not say {words:?}");
        assert!(text.contains("bad."), "{class}: {text:?} does not name the file");
        assert!(
            matches!(error.kind(), ErrorKind::Format | ErrorKind::Unsupported),
            "{class}: {error:?}"
        );
    }
}

fn st(class: &'static str, header: &str, data: usize, words: &'static str) -> Case {
    (class, "safetensors", safetensors(header, &vec![0; data]), words)
}

/// A header with one entry "x".
fn one(dtype: &str, shape: &str, from: u64, to: u64) -> String {
    format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
}

#[test]
fn safetensors_headers() {
    let huge = safetensors("{}", &[]);
    let with_length = |length: u64| {
        let mut file = huge.clone();
        file[..8].copy_from_slice(&length.to_le_bytes());
        file
    };
    let x = r#""x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let entries: Vec<String> = (0..=100_000)
        .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    let many = format!("{{{}}}", entries.join(","));
    let mut large = safetensors(&format!("{{{}", " ".repeat(17 << 20)), &[]);
    large.truncate(20 << 20);
    let nested = format!("{{\"x\":{}", "[".repeat(100_000));
    refuse(vec![
        ("empty file", "safetensors", vec![], "too few"),
        ("seven bytes", "safetensors", vec![0; 7], "too few"),
        ("header longer than the file", "safetensors", with_length(3), "the file has"),
        ("header of 2^64-1 bytes", "safetensors", with_length(u64::MAX), "the file has"),
        ("header of 2^63 bytes", "safetensors", with_length(1 << 63), "the file has"),
        ("header of 0 bytes", "safetensors", with_length(0), "does not start with"),
        ("header above the limit", "safetensors", large, "at most 16777216"),
        ("leading space", "safetensors", safetensors(" {}", &[]), "does not start with"),
        st("not JSON", "{x}", 0, "header:"),
        st("cut JSON", "{\"x\":", 0, "header:"),
        st("two objects", "{}{}", 0, "trailing"),
        st("deep nesting", &nested, 0, "header:"),
        ("not UTF-8", "safetensors", [2, 0, 0, 0, 0, 0, 0, 0, b'{', 0xff].to_vec(), "header:"),
        st("name twice", &format!("{{{x},{x}}}"), 1, "two entries \"x\""),
        st("escaped name twice", &format!("{{{x},{}}}", x.replace("x", "\\u0078")), 1, "two entri"),
        st("metadata twice", r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "__metadata__"),
        st("metadata key twice", r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0, "two entries \"a\""),
        st("metadata of numbers", r#"{"__metadata__":{"a":1}}"#, 0, "expected a string"),
        st("field twice", r#"{"x":{"dtype":"U8","dtype":"U8"}}"#, 0, "duplicate field"),
        st("unknown field", r#"{"x":{"type":"U8"}}"#, 0, "unknown field"),
        st("missing field", r#"{"x":{"dtype":"U8","shape":[1]}}"#, 1, "missing field"),
        st("entry is a list", r#"{"x":[1,2,3,4]}"#, 0, "header:"),
        st("unknown dtype", &one("F31", "[1]", 0, 4), 4, "unknown dtype \"F31\""),
        st("rank 9", &one("U8", "[1,1,1,1,1,1,1,1,1]", 0, 1), 1, "more than 8 dimensions"),
        st(
            "rank 100,000",
            &one("U8", &format!("[{}1]", "1,".repeat(99_999)), 0, 1),
            1,
            "more than",
        ),
        st("shape [2^64-1]", &one("U8", "[18446744073709551615]", 0, 1), 1, "overflows"),
        st("shape [2^64-1, 2]", &one("U8", "[18446744073709551615,2]", 0, 1), 1, "overflows"),
        st("shape [2^64-1, 2, 0]", &one("U8", "[18446744073709551615,2,0]", 0, 0), 0, "overflows"),
        st("2^61 floats", &one("F32", "[2305843009213693952]", 0, 0), 0, "overflows"),
        st("shape of 2^64", &one("U8", "[18446744073709551616]", 0, 1), 1, "header:"),
        st("negative dimension", &one("U8", "[-1]", 0, 1), 1, "header:"),
        st("fractional dimension", &one("U8", "[1.5]", 0, 1), 1, "header:"),
        st("offsets reversed", &one("U8", "[1]", 1, 0), 1, "outside"),
        st("end beyond the file", &one("U8", "[9]", 0, 9), 8, "outside the 8 bytes"),
        st("end 2^64-1", &one("U8", "[1]", 0, u64::MAX), 1, "outside"),
        st("offsets too short", &one("F32", "[2]", 0, 4), 4, "needs 8 bytes; data_offsets hold 4"),
        st("half a byte", &one("F4", "[1]", 0, 0), 0, "needs 1 bytes"),
        st("gap at the start", &one("U8", "[1]", 1, 2), 2, "ends at byte 0"),
        st("bytes after the end", &one("U8", "[1]", 0, 1), 2, "accounts for 1"),
        st("no tensors but data", "{}", 5, "accounts for 0"),
        st("overlap", &format!("{{{x},{}}}", x.replace("x", "y")), 1, "starts at byte 0"),
        st("too many tensors", &many, 0, "more than 100000"),
        st(
            "name of 1025 bytes",
            &one("U8", "[1]", 0, 1).replace("x", &"n".repeat(1025)),
            1,
            "1025",
        ),
        st(
            "with and without prefix",
            &format!(
                "{{{},{}}}",
                x.replace("x", "embed_in.w"),
                x.replace("\"x", "\"gpt_neox.embed_in.w").replace("[0,1]", "[1,2]")
            ),
            2,
            "stands twice",
        ),
    ]);
}

fn gg(class: &'static str, bytes: Vec<u8>, words: &'static str) -> Case {
    (class, "gguf", bytes, words)
}

#[test]
fn gguf_metadata() {
    let nested = (0..9).fold(Gguf::model(0, 1).string("deep").u32(9), |g, _| g.u32(9).u64(1));
    let array =
        |kind: u32, len: u64| Gguf::model(0, 1).string("list").u32(9).u32(kind).u64(len).data(64);
    let twice = Gguf::new(3, 0, 2).number("a", 1).number("a", 1);
    refuse(vec![
        gg("not GGUF", b"GGML\x03\0\0\0aaaaaaaa".to_vec(), "does not start with"),
        gg("version 0", Gguf::new(0, 0, 0).0, "GGUF version 0"),
        gg("version 1", Gguf::new(1, 0, 0).0, "GGUF version 1"),
        gg("version 4", Gguf::new(4, 0, 0).0, "GGUF version 4"),
        gg("big-endian", Gguf::new(3 << 24, 0, 0).0, "big-endian"),
        gg("cut in the counts", b"GGUF\x03\0\0\0\x01".to_vec(), "needs 8 more bytes"),
        gg("2^64-1 tensors", Gguf::new(3, u64::MAX, 0).0, "claims 18446744073709551615 tensors"),
        gg("tensors beyond the file", Gguf::new(3, 50, 0).0, "claims 50 tensors"),
        gg("2^64-1 pairs", Gguf::new(3, 0, u64::MAX).0, "metadata pairs"),
        gg("pairs beyond the file", Gguf::new(3, 0, 9).0, "claims 9 metadata pairs"),
        gg("key of 2^64-1 bytes", Gguf::new(3, 0, 1).u64(u64::MAX).data(64), "a metadata key"),
        gg("key not UTF-8", Gguf::new(3, 0, 1).u64(1).bytes(&[0xff]).data(64), "not UTF-8"),
        gg(
            "string of 2^40 bytes",
            Gguf::new(3, 0, 1).string("k").u32(8).u64(1 << 40).data(64),
            "a string claims",
        ),
        gg("unknown value type", Gguf::new(3, 0, 1).string("k").u32(13).data(64), "type 13"),
        gg(
            "bool of 2",
            Gguf::new(3, 0, 1).string("k").u32(7).bytes(&[2]).data(64),
            "bool of value 2",
        ),
        gg("key twice", twice.data(64), "two values of metadata key \"a\""),
        gg("array of 2^64-1", array(0, u64::MAX), "an array claims"),
        gg("array beyond the file", array(8, 100), "an array claims 100 elements"),
        gg("array of arrays beyond the file", array(9, 1000), "an array claims 1000"),
        gg("arrays nested 9 deep", nested.data(64), "nested more than 4"),
        gg(
            "another architecture",
            Gguf::new(3, 0, 1).text("general.architecture", "llama").0,
            "architecture \"llama\"",
        ),
        gg("no architecture", Gguf::new(3, 0, 0).0, "architecture \"\""),
        gg(
            "architecture is a number",
            Gguf::new(3, 0, 1).number("general.architecture", 1).0,
            "a string is needed",
        ),
        gg("alignment 0", Gguf::model(0, 1).number("general.alignment", 0).0, "power of two"),
        gg("alignment 33", Gguf::model(0, 1).number("general.alignment", 33).0, "power of two"),
        gg("alignment 2^31", Gguf::model(0, 1).number("general.alignment", 1 << 31).0, "power of"),
        gg(
            "no head count",
            Gguf::new(3, 0, 1).text("general.architecture", "gptneox").0,
            "gptneox.attention.head_count",
        ),
        gg(
            "no heads",
            Gguf::new(3, 0, 3)
                .text("general.architecture", "gptneox")
                .number("gptneox.attention.head_count", 0)
                .number("gptneox.embedding_length", 8)
                .0,
            "0 heads",
        ),
        gg(
            "heads that do not divide",
            Gguf::new(3, 0, 3)
                .text("general.architecture", "gptneox")
                .number("gptneox.attention.head_count", 3)
                .number("gptneox.embedding_length", 8)
                .0,
            "3 heads do not divide",
        ),
    ]);
}

#[test]
fn gguf_tensors() {
    let one = |name: &str, dims: &[u64], kind: u32, offset: u64| {
        Gguf::model(1, 0).tensor(name, dims, kind, offset).data(64)
    };
    let two = |second: &str, offset: u64| {
        Gguf::model(2, 0).tensor("a", &[8], 0, 0).tensor(second, &[8], 0, offset).data(64)
    };
    refuse(vec![
        gg("five dimensions", one("a", &[1; 5], 0, 0), "5 dimensions"),
        gg("rank 100", one("a", &[1; 100], 0, 0), "100 dimensions"),
        gg("rank 2^32-1", Gguf::model(1, 0).string("a").u32(u32::MAX).data(64), "4294967295 dim"),
        gg("name of 65 bytes", one(&"n".repeat(65), &[1], 0, 0), "at most 64"),
        gg("unknown type", one("a", &[1], 99, 0), "number 99"),
        gg("type Q2_K", one("a", &[256], 10, 0), "type Q2_K is not supported"),
        gg("removed type 4", one("a", &[32], 4, 0), "number 4"),
        gg("2^63 x 4", one("a", &[1 << 63, 4], 0, 0), "overflows"),
        gg("[2^64-1, 0]", one("a", &[u64::MAX, 0, 2], 0, 0), "overflows"),
        gg("2^62 floats", one("a", &[1 << 62], 0, 0), "overflows"),
        gg("row of 31 in blocks", one("a", &[31, 32], 8, 0), "rows of 31 weights in blocks of 32"),
        gg("offset not aligned", one("a", &[1], 0, 8), "no multiple of the alignment"),
        gg("offset beyond the file", one("a", &[1], 0, 96), "96 of 64 bytes"),
        gg("offset 2^64-32", one("a", &[8], 0, u64::MAX - 31), "bytes of data"),
        gg("end beyond the file", one("a", &[17], 0, 0), "68 bytes at offset 0"),
        gg("data cut off", Gguf::model(1, 0).tensor("a", &[8], 0, 0).0, "32 bytes at offset 0"),
        gg("name twice", two("a", 32), "stands twice"),
        gg("overlap", two("b", 0), "which starts at byte"),
        gg("qkv of another shape", one("blk.0.attn_qkv.weight", &[2, 8], 0, 0), "3 x gptneox"),
        gg("qkv without dimensions", one("blk.0.attn_qkv.bias", &[], 0, 0), "3 x gptneox"),
        gg(
            "quantized qkv bias",
            Gguf::model(1, 0).tensor("blk.0.attn_qkv.bias", &[96], 8, 0).data(102),
            "quantized bias",
        ),
        gg("descriptions cut short", Gguf::model(2, 0).tensor("a", &[8], 0, 0).0, "more bytes"),
    ]);
}

fn bin(class: &'static str, bytes: Vec<u8>, words: &'static str) -> Case {
    (class, "bin", bytes, words)
}

#[test]
fn zip_archives() {
    let pickle = || entry("m/data.pkl", &Program::default().bytes());
    let storage = || entry("m/data/0", &[0; 16]);
    let with = |change: &dyn Fn(&mut Entry)| {
        let mut changed = storage();
        change(&mut changed);
        zip(&[pickle(), changed])
    };
    let good = zip(&[pickle(), storage()]);
    let end = good.len() - 22;
    let patch = |at: usize, value: &[u8]| {
        let mut file = good.clone();
        file[end + at..][..value.len()].copy_from_slice(value);
        file
    };
    let mut tail = good.clone();
    tail.push(0);
    refuse(vec![
        bin("no end record", good[..end].to_vec(), "no end record"),
        bin("a byte after the end", tail, "no end record"),
        bin("only a local header", b"PK\x03\x04".repeat(10), "no end record"),
        bin("65,534 entries claimed", patch(8, &[0xfe, 0xff, 0xfe, 0xff]), "65534 entries"),
        bin("one entry too many claimed", patch(8, &[3, 0, 3, 0]), "entries"),
        bin("one entry too few claimed", patch(8, &[1, 0, 1, 0]), "follow the last entry"),
        bin("disks", patch(4, &[1, 0]), "no end record"),
        bin("directory offset of 2^32-2", patch(16, &[0xfe, 0xff, 0xff, 0xff]), "runs into"),
        bin("directory in the wrong place", patch(16, &[0, 0, 0, 0]), "entry 0 of the directory"),
        bin("zip64 without its record", patch(16, &[0xff; 4]), "zip64 end record is missing"),
        bin("name twice", zip(&[pickle(), storage(), storage()]), "two entries \"m/data/0\""),
        bin("name of 2000 bytes", zip(&[pickle(), entry(&"n".repeat(2000), &[])]), "2000 bytes"),
        bin("compressed", with(&|e| e.method = 8), "compressed"),
        bin("encrypted", with(&|e| e.flags = 1), "encrypted"),
        bin("other local name", with(&|e| e.local_name = Some("m/data/1".into())), "another name"),
        bin("size beyond the directory", with(&|e| e.size = Some(5000)), "run into the directory"),
        bin("header beyond the file", with(&|e| e.header = Some(1 << 30)), "the file has"),
        bin("header at no entry", with(&|e| e.header = Some(4)), "does not point to an entry"),
        bin("no data.pkl", zip(&[storage()]), "holds no data.pkl"),
        bin("two data.pkl", zip(&[pickle(), entry("n/data.pkl", &[])]), "more than one"),
        bin("TorchScript", zip(&[pickle(), entry("m/constants.pkl", &[])]), "TorchScript"),
        bin("big-endian", zip(&[pickle(), storage(), entry("m/byteorder", b"big")]), "\"big\""),
        bin("byte order of 1 kB", zip(&[pickle(), entry("m/byteorder", &[0; 1024])]), "at most 16"),
        bin("storage missing", zip(&[pickle()]), "\"0\" is not in the archive"),
        bin("storage too short", zip(&[pickle(), entry("m/data/0", &[0; 15])]), "holds 15 bytes"),
    ]);
}

#[test]
fn zip64_archives() {
    let storage: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let good =
        zip64(&[entry("m/data.pkl", &Program::default().bytes()), entry("m/data/0", &storage)]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("good.bin");
    std::fs::write(&path, &good).unwrap();
    assert_eq!(open(&path).unwrap().read_vec("x", 4).unwrap(), [1.0, 2.0, 3.0, 4.0]);

    let end = good.len() - 22 - 20 - 56;
    let patch = |at: usize, value: &[u8]| {
        let mut file = good.clone();
        file[at..][..value.len()].copy_from_slice(value);
        file
    };
    // The last directory entry: a name of 8 bytes, then 4 + 24 bytes of wide numbers.
    let extra = end - 28;
    refuse(vec![
        bin("wide record elsewhere", patch(end + 56 + 8, &[0xff; 8]), "the file has"),
        bin("wide record of another kind", patch(end, b"PK\x06\x05"), "bad zip64 end record"),
        bin("2^64-1 entries", patch(end + 24, &[0xff; 16]), "18446744073709551615 entries"),
        bin("directory of 2^64-1 bytes", patch(end + 40, &[0xff; 8]), "runs into"),
        bin("directory at 2^64-1", patch(end + 48, &[0xff; 8]), "runs into"),
        bin("two end records that disagree", patch(end + 76 + 8, &[9, 0, 9, 0]), "disagree"),
        bin("no wide numbers", patch(extra, &[2, 0]), "the file has"),
        bin("wide numbers cut short", patch(extra + 2, &[8, 0]), "directory"),
        bin("size of 2^64-1", patch(extra + 4, &[0xff; 16]), "run into the directory"),
        bin("header at 2^64-1", patch(extra + 20, &[0xff; 8]), "the file has"),
    ]);
}

#[test]
fn pickled_tensors() {
    let with = |change: &dyn Fn(&mut Program)| {
        let mut program = Program::default();
        change(&mut program);
        torch(&program.bytes())
    };
    refuse(vec![
        bin("storage of 2^31-1 elements", with(&|p| p.len = i32::MAX), "claims 2147483647"),
        bin("negative storage", with(&|p| p.len = -1), "-1 stands for a size"),
        bin("negative offset", with(&|p| p.offset = -4), "-4 stands for a size"),
        bin("offset beyond the storage", with(&|p| p.offset = 1), "exceeds its storage of 4"),
        bin("negative dimension", with(&|p| p.shape = &[-2, -2]), "-2 stands for a size"),
        bin(
            "shape beyond the storage",
            with(&|p| (p.shape, p.stride) = (&[3, 2], &[2, 1])),
            "exceeds",
        ),
        bin(
            "2^124 elements",
            with(&|p| (p.shape, p.stride) = (&[i32::MAX; 4], &[i32::MAX, i32::MAX, i32::MAX, 1])),
            "not contiguous",
        ),
        bin(
            "overflow beside a zero",
            with(&|p| (p.shape, p.stride) = (&[i32::MAX, i32::MAX, i32::MAX, 0], &[1; 4])),
            "overflows",
        ),
        bin("rank 9", with(&|p| (p.shape, p.stride) = (&[1; 9], &[1; 9])), "9 elements; at most 8"),
        bin("strides of another rank", with(&|p| p.stride = &[1]), "not contiguous"),
        bin("transposed", with(&|p| p.stride = &[1, 2]), "not contiguous"),
        bin("stride 0", with(&|p| p.stride = &[0, 0]), "not contiguous"),
        bin("path as storage key", with(&|p| p.key = "../../etc/passwd"), "is not in the archive"),
        bin(
            "complex storage",
            with(&|p| p.storage = "ComplexFloatStorage"),
            "torch.ComplexFloatStorage",
        ),
        bin("name that is not UTF-8", with(&|p| p.name = &[0xff]), "not UTF-8"),
    ]);
}

fn pkl(class: &'static str, program: &[u8], words: &'static str) -> Case {
    bin(class, torch(program), words)
}

#[test]
fn pickle_programs() {
    let mut twice = b"\x80\x02}(".to_vec();
    let tensor = Program::default().bytes();
    let tensor = &tensor[4..tensor.len() - 2];
    twice.extend_from_slice(&[tensor, tensor, b"u."].concat());
    let nested = [b"\x80\x02".to_vec(), b"(".repeat(2_000_000)].concat();
    let pushes = [b"\x80\x02".to_vec(), b"N".repeat(2_000_000)].concat();
    let tuples = [b"\x80\x02)".to_vec(), b"\x85".repeat(999_000), b".".to_vec()].concat();
    let mut copies = b"\x80\x02(NNNNNNNNtq\0".to_vec();
    copies.extend_from_slice(&b"h\0".repeat(1_000_001));
    let mut long_key = b"\x80\x02}".to_vec();
    text(&mut long_key, &[b'n'; 2000]);
    long_key.extend_from_slice(&tensor[6..]);
    long_key.extend_from_slice(b"s.");
    refuse(vec![
        pkl("empty program", b"", "cut short"),
        pkl("no STOP", b"\x80\x02}", "cut short"),
        pkl("protocol 0", b"(dp0\n.", "opcode 0x64"),
        pkl("protocol 1", b"\x80\x01}.", "protocol 1"),
        pkl("protocol 6", b"\x80\x06}.", "protocol 6"),
        pkl("os.system", b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.", "names os.system"),
        pkl("posix.system", b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "names posix.system"),
        pkl("builtins.eval", b"\x80\x02c__builtin__\neval\n.", "names __builtin__.eval"),
        pkl("builtins.getattr", b"\x80\x02cbuiltins\ngetattr\n.", "names builtins.getattr"),
        pkl("torch.load", b"\x80\x02ctorch\nload\n.", "names torch.load"),
        pkl("_load_from_bytes", b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "_load_from_bytes"),
        pkl("dotted name", b"\x80\x02ctorch\n_utils.os.system\n.", "torch._utils.os.system"),
        pkl("rebuild_tensor_v3", b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n.", "_v3"),
        pkl("control characters in a name", b"\x80\x02cos\x1b[2J\nx\n.", "os\\u{1b}[2J"),
        pkl(
            "global without end",
            &[b"\x80\x02c".to_vec(), vec![b'a'; 5000]].concat(),
            "without end",
        ),
        pkl("global from numbers", b"\x80\x04K\x01K\x01\x93.", "without a name"),
        pkl("INST", b"\x80\x02(ios\nsystem\n.", "opcode 0x69"),
        pkl("OBJ", b"\x80\x02(o.", "opcode 0x6f"),
        pkl("EXT1", b"\x80\x02\x82\x01.", "opcode 0x82"),
        pkl("NEWOBJ_EX", b"\x80\x04\x92.", "opcode 0x92"),
        pkl("BUFFER", b"\x80\x05\x97.", "opcode 0x97"),
        pkl("PERSID", b"\x80\x02Pabc\n.", "opcode 0x50"),
        pkl("DUP", b"\x80\x02}22222.", "opcode 0x32"),
        pkl("LONG4", b"\x80\x02\x8b\xff\xff\xff\x7f.", "opcode 0x8b"),
        pkl("LONG1 of 255 bytes", b"\x80\x02\x8a\xff", "255 bytes; at most 8"),
        pkl("string of 4 GB", b"\x80\x02X\xff\xff\xff\xffabc", "a string of 4294967295 bytes"),
        pkl("string of 2^64-1", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "a string of"),
        pkl("frame beyond the program", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.", "frame"),
        pkl("memo slot 2^32-1", b"\x80\x02}r\xff\xff\xff\xff.", "more than 1000000 values"),
        pkl("memo never set", b"\x80\x02h\x07.", "memo 7 was never set"),
        pkl("long memo never set", b"\x80\x02j\xff\xff\xff\xff.", "memo 4294967295"),
        pkl("memo of nothing", b"\x80\x02q\0.", "the stack is empty"),
        pkl("pop of nothing", b"\x80\x02\x85.", "the stack is empty"),
        pkl("tuple without a mark", b"\x80\x02t.", "no mark"),
        pkl("value below a mark", b"\x80\x02N(\x85.", "a mark stands where"),
        pkl("memo below a mark", b"\x80\x02N(q\0.", "the stack is empty"),
        pkl("marks without end", &nested, "more than 1000000 values"),
        pkl("values without end", &pushes, "more than 1000000 values"),
        pkl("copies of a memo without end", &copies, "more than 1000000 values"),
        pkl("tuples nested 500,000 deep", &tuples, "more than 1000000 values"),
        pkl("values left at the end", b"\x80\x02}}.", "left on the stack"),
        pkl("mark left at the end", b"\x80\x02}(.", "a mark stands"),
        pkl("result is no dict", b"\x80\x02K\x01.", "describes an integer"),
        pkl("entry is no tensor", b"\x80\x02}X\x01\0\0\0xNs.", "entry \"x\" is None"),
        pkl("key is no string", b"\x80\x02}K\x01Ns.", "an integer is a key"),
        pkl("name twice", &twice, "two entries \"x\""),
        pkl("name of 2000 bytes", &long_key, "a name of 2000 bytes"),
        pkl("odd number of items", b"\x80\x02}(Nu.", "a key without a value"),
        pkl("items of a tuple", b"\x80\x02)NNs.", "a tuple is no dict"),
        pkl("append to a dict", b"\x80\x02}Na.", "a dict is no list"),
        pkl("call of a string", b"\x80\x04\x8c\x01f)R.", "a string is called"),
        pkl("call of a storage type", b"\x80\x02ctorch\nFloatStorage\n)R.", "unusual arguments"),
        pkl("call without a tuple", b"\x80\x02ccollections\nOrderedDict\nNR.", "for a tuple"),
        pkl("OrderedDict of arguments", b"\x80\x02ccollections\nOrderedDict\nN\x85R.", "unusual"),
        pkl("tensor over None", b"\x80\x02ctorch._utils\n_rebuild_tensor\n(NK\0))tR.", "over None"),
        pkl("parameter of None", b"\x80\x02ctorch._utils\n_rebuild_parameter\nN\x85R.", "unusual"),
        pkl("persistent id of None", b"\x80\x02NQ.", "stands for a tuple"),
        pkl("persistent id too short", b"\x80\x02)Q.", "no storage"),
        pkl("attributes on None", b"\x80\x02NNb.", "attributes are set on None"),
    ]);
}

#[test]
fn indexes() {
    let folder = tempfile::tempdir().unwrap();
    let shard = golden("sharded/model-00001-of-00002.safetensors");
    let name = shard.file_name().unwrap().to_str().unwrap();
    let here = |tensor: &str, shard: &str| format!(r#"{{"weight_map":{{"{tensor}":"{shard}"}}}}"#);
    let good = "gpt_neox.embed_in.weight";
    let pair = format!(r#""{good}":"{name}""#);
    for (class, index, words) in [
        ("empty", String::new(), "EOF"),
        ("a list", "[]".to_owned(), "weight_map"),
        ("no weight_map", r#"{"metadata":{}}"#.to_owned(), "missing field"),
        ("two maps", r#"{"weight_map":{},"weight_map":{}}"#.to_owned(), "two entries"),
        ("name twice", format!(r#"{{"weight_map":{{{pair},{pair}}}}}"#), "two entries"),
        ("shard is a number", r#"{"weight_map":{"x":1}}"#.to_owned(), "a string"),
        ("deep nesting", format!(r#"{{"metadata":{}"#, "[".repeat(100_000)), "index.json"),
        ("promise not kept", here("no.such.tensor", name), "does not hold it"),
        ("shard not there", here(good, "model-9.safetensors"), "not among"),
        ("parent", here(good, "../model.safetensors"), "not a plain file name"),
        ("absolute", here(good, "/etc/passwd"), "not a plain file name"),
        ("backslash", here(good, "a\\\\b"), "not a plain file name"),
    ] {
        let path = folder.path().join("model.safetensors.index.json");
        std::fs::write(&path, index).unwrap();
        let files = directory(std::slice::from_ref(&shard), Some(path));
        let error = Checkpoint::open(&files).map(|_| ()).expect_err(class).to_string();
        assert!(error.contains(words) && error.contains("index.json"), "{class}: {error}");
    }
}

#[test]
fn paths_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(open(&folder.path().join("no.gguf")).unwrap_err().kind(), ErrorKind::Io);
    let error = open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
    let error = Checkpoint::open(&directory(&[], None)).unwrap_err();
    assert!(error.to_string().contains("no weight file"), "{error}");
    let error = Checkpoint::open(&directory(&[golden("model.gguf")], None)).unwrap_err();
    assert!(error.to_string().contains("give its path as the model"), "{error}");
}
