//! Writers of small files that say exactly what a test wants, true or not.

/// A safetensors file of this header and data.
pub(super) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// A GGUF header under construction.
pub(super) struct Gguf(pub(super) Vec<u8>);

impl Gguf {
    /// Magic, version and counts.
    pub(super) fn new(version: u32, tensors: u64, pairs: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(pairs)
    }

    /// Version 3 with the three pairs every model needs, and `more` to follow.
    pub(super) fn model(tensors: u64, more: u64) -> Self {
        Self::new(3, tensors, 3 + more)
            .text("general.architecture", "gptneox")
            .number("gptneox.attention.head_count", 2)
            .number("gptneox.embedding_length", 32)
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn string(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    pub(super) fn text(self, key: &str, value: &str) -> Self {
        self.string(key).u32(8).string(value)
    }

    pub(super) fn number(self, key: &str, value: u32) -> Self {
        self.string(key).u32(4).u32(value)
    }

    /// A description: dimensions as the file orders them, the fastest first.
    pub(super) fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let described = self.string(name).u32(dims.len() as u32);
        dims.iter().fold(described, |g, dim| g.u64(*dim)).u32(kind).u64(offset)
    }

    /// Padding to 32 and `len` bytes of data.
    pub(super) fn data(mut self, len: usize) -> Vec<u8> {
        let padded = self.0.len().next_multiple_of(32) + len;
        self.0.resize(padded, 0);
        self.0
    }
}

/// An entry of a zip archive, with lies where a test wants them.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) data: Vec<u8>,
    pub(super) method: u16,
    pub(super) flags: u16,
    pub(super) local_name: Option<String>,
    /// Size and header position in the directory, where they are to differ from the truth.
    pub(super) size: Option<u32>,
    pub(super) header: Option<u32>,
}

pub(super) fn entry(name: &str, data: &[u8]) -> Entry {
    Entry {
        name: name.to_owned(),
        data: data.to_vec(),
        method: 0,
        flags: 0,
        local_name: None,
        size: None,
        header: None,
    }
}

/// A zip archive of stored entries.
pub(super) fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let at = file.len() as u32;
        let local = entry.local_name.as_ref().unwrap_or(&entry.name);
        let len = entry.data.len() as u32;
        file.extend_from_slice(b"PK\x03\x04\x14\0");
        for field in [entry.flags, entry.method, 0, 0] {
            file.extend_from_slice(&field.to_le_bytes());
        }
        for field in [0, len, len] {
            file.extend_from_slice(&field.to_le_bytes());
        }
        file.extend_from_slice(&(local.len() as u16).to_le_bytes());
        file.extend_from_slice(&[0, 0]);
        file.extend_from_slice(local.as_bytes());
        file.extend_from_slice(&entry.data);

        directory.extend_from_slice(b"PK\x01\x02\x14\0\x14\0");
        for field in [entry.flags, entry.method, 0, 0] {
            directory.extend_from_slice(&field.to_le_bytes());
        }
        let size = entry.size.unwrap_or(len);
        for field in [0, size, size] {
            directory.extend_from_slice(&field.to_le_bytes());
        }
        directory.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
        directory.extend_from_slice(&[0; 12]);
        directory.extend_from_slice(&entry.header.unwrap_or(at).to_le_bytes());
        directory.extend_from_slice(entry.name.as_bytes());
    }
    let (start, size) = (file.len() as u32, directory.len() as u32);
    file.extend_from_slice(&directory);
    file.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    for _ in 0..2 {
        file.extend_from_slice(&(entries.len() as u16).to_le_bytes());
    }
    file.extend_from_slice(&size.to_le_bytes());
    file.extend_from_slice(&start.to_le_bytes());
    file.extend_from_slice(&[0, 0]);
    file
}

/// A torch archive of this program and one storage "0" of 16 bytes.
pub(super) fn torch(program: &[u8]) -> Vec<u8> {
    zip(&[entry("m/data.pkl", program), entry("m/data/0", &[0; 16]), entry("m/version", b"3\n")])
}

/// The parts of a program that builds `{"x": tensor}`, each replaceable.
#[derive(Clone)]
pub(super) struct Program {
    pub(super) name: &'static [u8],
    pub(super) storage: &'static str,
    pub(super) key: &'static str,
    pub(super) len: i32,
    pub(super) offset: i32,
    pub(super) shape: &'static [i32],
    pub(super) stride: &'static [i32],
}

impl Default for Program {
    fn default() -> Self {
        let (shape, stride) = (&[2, 2], &[2, 1]);
        Self { name: b"x", storage: "FloatStorage", key: "0", len: 4, offset: 0, shape, stride }
    }
}

impl Program {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut p = b"\x80\x02}(".to_vec();
        text(&mut p, self.name);
        self.tensor(&mut p);
        p.extend_from_slice(b"u.");
        p
    }

    fn tensor(&self, p: &mut Vec<u8>) {
        p.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(p, b"storage");
        p.extend_from_slice(format!("ctorch\n{}\n", self.storage).as_bytes());
        text(p, self.key.as_bytes());
        text(p, b"cpu");
        int(p, self.len);
        p.extend_from_slice(b"tQ");
        int(p, self.offset);
        for sizes in [self.shape, self.stride] {
            p.push(b'(');
            sizes.iter().for_each(|&size| int(p, size));
            p.push(b't');
        }
        p.extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtR");
    }
}

pub(super) fn text(program: &mut Vec<u8>, text: &[u8]) {
    program.push(b'X');
    program.extend_from_slice(&(text.len() as u32).to_le_bytes());
    program.extend_from_slice(text);
}

fn int(program: &mut Vec<u8>, value: i32) {
    program.push(b'J');
    program.extend_from_slice(&value.to_le_bytes());
}

/// `zip`, with every number of the directory and the end record in its zip64 form.
pub(super) fn zip64(entries: &[Entry]) -> Vec<u8> {
    let narrow = zip(entries);
    let end = narrow.len() - 22;
    let number = |at: usize| u32::from_le_bytes(*narrow[at..].first_chunk().unwrap()) as usize;
    let (start, mut at) = (number(end + 16), number(end + 16));
    let mut file = narrow[..start].to_vec();
    for entry in entries {
        let name = entry.name.len();
        let mut header = narrow[at..][..46].to_vec();
        let wide = [number(at + 24), number(at + 20), number(at + 42)];
        header[20..28].fill(0xff);
        header[42..46].fill(0xff);
        header[30] = 28;
        file.extend_from_slice(&header);
        file.extend_from_slice(&narrow[at + 46..][..name]);
        file.extend_from_slice(&[1, 0, 24, 0]);
        wide.iter().for_each(|n| file.extend_from_slice(&(*n as u64).to_le_bytes()));
        at += 46 + name;
    }
    let (wide_at, count) = (file.len() as u64, entries.len() as u64);
    file.extend_from_slice(b"PK\x06\x06");
    file.extend_from_slice(&44u64.to_le_bytes());
    file.extend_from_slice(&[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for number in [count, count, wide_at - start as u64, start as u64] {
        file.extend_from_slice(&number.to_le_bytes());
    }
    file.extend_from_slice(b"PK\x06\x07\0\0\0\0");
    file.extend_from_slice(&wide_at.to_le_bytes());
    file.extend_from_slice(&1u32.to_le_bytes());
    file.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    file.extend_from_slice(&[0xff; 12]);
    file.extend_from_slice(&[0, 0]);
    file
}
