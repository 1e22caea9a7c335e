//! The pickle program of a PyTorch state dict, interpreted and never executed.
//!
//! A pickle is a program for a stack machine that may call any Python function. This machine knows
//! the few operations a state dict needs and the few functions it names; a call has no effect but
//! to describe a tensor. Everything else is refused by name. Values refer to the program's bytes
//! or to flat arenas, so that a program of `n` bytes can neither take more than a fixed amount of
//! memory nor nest values deeper than a loop can free.
//!
//! Opcodes: CPython's `Lib/pickletools.py`; persistent ids: `torch/serialization.py`.

use std::collections::HashSet;

use super::{MAX_NAME, MAX_RANK, MAX_TENSORS};

mod values;

use values::{Global, Step, Value, clip, contiguous, find_global, natural, to_usize};
pub(super) use values::{PickledTensor, Storage};

/// Most values of a program, memo slots and elements of containers included (about 25,000 tensors).
const MAX_VALUES: usize = 1_000_000;

/// A rebuilt tensor that has no name yet.
#[derive(Debug)]
struct Rebuilt<'a> {
    storage: Storage<'a>,
    offset: u64,
    shape: Vec<usize>,
}

#[derive(Default)]
struct Machine<'a> {
    program: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: Vec<Option<Value<'a>>>,
    tuples: Vec<Value<'a>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    tensors: Vec<Rebuilt<'a>>,
    spent: usize,
}

/// Interprets a program and lists the tensors of the dict it builds, in its order.
///
/// The error says what is wrong and at which byte.
pub(crate) fn run(program: &[u8]) -> Result<Vec<PickledTensor<'_>>, String> {
    let mut machine = Machine { program, ..Machine::default() };
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(result)) => return machine.state_dict(result),
            Err(reason) => return Err(format!("byte {at}: {reason}")),
        }
    }
}

impl<'a> Machine<'a> {
    /// Runs one operation; `Some` is the value that STOP leaves.
    fn step(&mut self) -> Step<Option<Value<'a>>> {
        let [op] = self.take()?;
        match op {
            b'.' => return Ok(Some(self.stop()?)),
            0x80 => self.protocol()?,
            0x95 => self.frame()?,
            b'(' => {
                self.spend(1)?;
                self.marks.push(self.stack.len());
            }
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Bool)?,
            b'K' | b'M' | b'J' | 0x8a | b'G' => self.number(op)?,
            b'X' | 0x8c | 0x8d => self.string(op)?,
            b')' | b't' | 0x85..=0x87 => self.tuple(op)?,
            b']' => self.push(Value::Opaque)?,
            b'a' | b'e' => self.append(op)?,
            b'}' => self.new_dict()?,
            b's' | b'u' => self.set_items(op)?,
            b'q' | b'r' | 0x94 => self.put(op)?,
            b'h' | b'j' => self.get(op)?,
            b'c' | 0x93 => self.global(op)?,
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            b'Q' => self.persistent()?,
            op => return Err(format!("opcode {op:#04x} is not one a state dict uses")),
        }
        Ok(None)
    }

    fn take<const N: usize>(&mut self) -> Step<[u8; N]> {
        let rest = self.program.get(self.at..).unwrap_or_default();
        let bytes = rest.first_chunk().ok_or("the program is cut short")?;
        self.at += N;
        Ok(*bytes)
    }

    fn text(&mut self, len: u64) -> Step<&'a str> {
        let rest = self.program.get(self.at..).unwrap_or_default();
        let bytes = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        let bytes =
            bytes.ok_or(format!("a string of {len} bytes; the program has {}", rest.len()))?;
        self.at += bytes.len();
        std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8".to_owned())
    }

    /// A string that ends at a newline.
    fn line(&mut self) -> Step<&'a str> {
        let rest = self.program.get(self.at..).unwrap_or_default();
        let len = rest.iter().take(MAX_NAME).position(|&b| b == b'\n');
        let line = self.text(len.ok_or("a name without end")? as u64)?;
        self.at += 1;
        Ok(line)
    }

    /// Accounts for `n` more values.
    fn spend(&mut self, n: usize) -> Step {
        self.spent = self.spent.saturating_add(n);
        match self.spent <= MAX_VALUES {
            true => Ok(()),
            false => Err(format!("more than {MAX_VALUES} values")),
        }
    }

    fn push(&mut self, value: Value<'a>) -> Step {
        self.spend(1)?;
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Step<Value<'a>> {
        if self.marks.last().is_some_and(|&mark| self.stack.len() <= mark) {
            return Err("a mark stands where a value is needed".to_owned());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".to_owned())
    }

    /// The values above the last mark.
    fn pop_mark(&mut self) -> Step<Vec<Value<'a>>> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        match mark <= self.stack.len() {
            true => Ok(self.stack.split_off(mark)),
            false => Err("a mark above the stack".to_owned()),
        }
    }

    /// The value on top, left there.
    fn top(&self) -> Step<Value<'a>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .get(floor..)
            .and_then(<[_]>::last)
            .copied()
            .ok_or("the stack is empty".to_owned())
    }

    fn stop(&mut self) -> Step<Value<'a>> {
        let value = self.pop()?;
        match self.stack.is_empty() && self.marks.is_empty() {
            true => Ok(value),
            false => Err("values are left on the stack at the end".to_owned()),
        }
    }

    fn protocol(&mut self) -> Step {
        let [version] = self.take()?;
        match version {
            2..=5 => Ok(()),
            _ => Err(format!("pickle protocol {version}; 2 to 5 are supported")),
        }
    }

    fn frame(&mut self) -> Step {
        let length = u64::from_le_bytes(self.take()?);
        let rest = self.program.len() - self.at;
        match length <= rest as u64 {
            true => Ok(()),
            false => Err(format!("a frame of {length} bytes; the program has {rest}")),
        }
    }

    fn number(&mut self, op: u8) -> Step {
        let value = match op {
            b'K' => Value::Int(u8::from_le_bytes(self.take()?).into()),
            b'M' => Value::Int(u16::from_le_bytes(self.take()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.take()?).into()),
            b'G' => {
                self.take::<8>()?;
                Value::Opaque
            }
            _ => Value::Int(self.long()?),
        };
        self.push(value)
    }

    /// A signed little-endian integer of up to eight bytes.
    fn long(&mut self) -> Step<i64> {
        let [len] = self.take()?;
        if len > 8 {
            return Err(format!("an integer of {len} bytes; at most 8"));
        }
        let (mut value, mut shift) = (0i64, 0);
        for number in 0..len {
            let [byte] = self.take()?;
            value |= i64::from(byte) << shift;
            shift += 8;
            if number + 1 == len && byte >= 0x80 && shift < 64 {
                value |= -1 << shift;
            }
        }
        Ok(value)
    }

    fn string(&mut self, op: u8) -> Step {
        let len = match op {
            0x8c => u8::from_le_bytes(self.take()?).into(),
            b'X' => u32::from_le_bytes(self.take()?).into(),
            _ => u64::from_le_bytes(self.take()?),
        };
        let text = self.text(len)?;
        self.push(Value::Str(text))
    }

    fn tuple(&mut self, op: u8) -> Step {
        let values = match op {
            b')' => Vec::new(),
            b't' => self.pop_mark()?,
            _ => {
                let mut values = Vec::with_capacity(3);
                for _ in 0..op - 0x84 {
                    values.push(self.pop()?);
                }
                values.reverse();
                values
            }
        };
        self.spend(values.len())?;
        let tuple = Value::Tuple { start: self.tuples.len(), len: values.len() };
        self.tuples.extend(values);
        self.push(tuple)
    }

    /// Lists are of no interest (they stand in module metadata): what is appended is dropped.
    fn append(&mut self, op: u8) -> Step {
        if op == b'e' {
            self.pop_mark()?;
        } else {
            self.pop()?;
        }
        match self.top()? {
            Value::Opaque => Ok(()),
            other => Err(format!("{} is no list", other.kind())),
        }
    }

    fn new_dict(&mut self) -> Step {
        self.dicts.push(Vec::new());
        self.push(Value::Dict(self.dicts.len() - 1))
    }

    fn set_items(&mut self, op: u8) -> Step {
        let items = match op {
            b'u' => self.pop_mark()?,
            _ => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
        };
        self.spend(items.len())?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err("a key without a value".to_owned());
        };
        let target = self.top()?;
        let Value::Dict(dict) = target else {
            return Err(format!("{} is no dict", target.kind()));
        };
        let dict = self.dicts.get_mut(dict).ok_or("no such dict")?;
        dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn put(&mut self, op: u8) -> Step {
        let slot = match op {
            b'q' => u8::from_le_bytes(self.take()?) as usize,
            b'r' => u32::from_le_bytes(self.take()?) as usize,
            _ => self.memo.len(),
        };
        let value = self.top()?;
        if slot >= self.memo.len() {
            self.spend(slot + 1 - self.memo.len())?;
            self.memo.resize(slot + 1, None);
        }
        if let Some(memo) = self.memo.get_mut(slot) {
            *memo = Some(value);
        }
        Ok(())
    }

    fn get(&mut self, op: u8) -> Step {
        let slot = match op {
            b'h' => u8::from_le_bytes(self.take()?) as usize,
            _ => u32::from_le_bytes(self.take()?) as usize,
        };
        let value = self.memo.get(slot).copied().flatten();
        self.push(value.ok_or(format!("memo {slot} was never set"))?)
    }

    fn global(&mut self, op: u8) -> Step {
        let (module, name) = if op == b'c' {
            (self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            let (Value::Str(module), Value::Str(name)) = (module, name) else {
                return Err("a global without a name".to_owned());
            };
            (module, name)
        };
        let global = find_global(module, name).ok_or_else(|| {
            let (module, name) = (clip(module), clip(name));
            format!("names {module}.{name}, which a state dict does not need; it was not called")
        })?;
        self.push(Value::Global(global))
    }

    /// REDUCE and NEWOBJ: a function or class, and a tuple of arguments.
    fn call(&mut self) -> Step {
        let (args, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = function else {
            return Err(format!("{} is called", function.kind()));
        };
        let args = self.elements(args)?;
        match (function, &args[..]) {
            (Global::OrderedDict, []) => self.new_dict(),
            (Global::RebuildTensor, [storage, offset, shape, stride])
            | (Global::RebuildTensorV2, [storage, offset, shape, stride, _, _])
            | (Global::RebuildTensorV2, [storage, offset, shape, stride, _, _, _]) => {
                self.rebuild(*storage, *offset, *shape, *stride)
            }
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => self.push(*tensor),
            _ => Err(format!("{function:?} is called with {} unusual arguments", args.len())),
        }
    }

    fn elements(&self, tuple: Value<'a>) -> Step<Vec<Value<'a>>> {
        let Value::Tuple { start, len } = tuple else {
            return Err(format!("{} stands for a tuple", tuple.kind()));
        };
        // The longest tuple that means something has seven elements, or a tensor's dimensions.
        if len > MAX_RANK {
            return Err(format!("a tuple of {len} elements; at most {MAX_RANK}"));
        }
        let elements = self.tuples.get(start..start + len).ok_or("no such tuple")?;
        Ok(elements.to_vec())
    }

    /// The numbers of a tuple, none of them negative.
    fn sizes(&self, tuple: Value<'a>) -> Step<Vec<usize>> {
        let sizes = self.elements(tuple)?;
        sizes.iter().map(|size| natural(*size).and_then(to_usize)).collect()
    }

    fn rebuild(
        &mut self,
        storage: Value<'a>,
        offset: Value<'a>,
        shape: Value<'a>,
        stride: Value<'a>,
    ) -> Step {
        let Value::Storage(storage) = storage else {
            return Err(format!("a tensor over {}", storage.kind()));
        };
        let (shape, stride) = (self.sizes(shape)?, self.sizes(stride)?);
        if !contiguous(&shape, &stride) {
            return Err(format!(
                "a tensor of shape {shape:?} with strides {stride:?} is not contiguous, which is \
                 not supported; save it after .contiguous()"
            ));
        }
        if self.tensors.len() == MAX_TENSORS {
            return Err(format!("more than {MAX_TENSORS} tensors"));
        }
        self.tensors.push(Rebuilt { storage, offset: natural(offset)?, shape });
        self.push(Value::Tensor(self.tensors.len() - 1))
    }

    /// BUILD sets attributes (`_metadata`); they hold no weight.
    fn build(&mut self) -> Step {
        self.pop()?;
        match self.top()? {
            Value::Dict(_) | Value::Tensor(_) => Ok(()),
            other => Err(format!("attributes are set on {}", other.kind())),
        }
    }

    /// `("storage", type, key, location, number of elements)`.
    fn persistent(&mut self) -> Step {
        let id = self.pop()?;
        let id = self.elements(id)?;
        let [Value::Str("storage"), Value::Global(kind), Value::Str(key), Value::Str(_), len] =
            id[..]
        else {
            return Err("a persistent id that is no storage".to_owned());
        };
        let Global::StorageType(stored, width) = kind else {
            return Err(format!("a storage of type {kind:?}"));
        };
        if key.len() > MAX_NAME {
            return Err(format!("a storage key of {} bytes", key.len()));
        }
        self.push(Value::Storage(Storage { key, stored, width, len: natural(len)? }))
    }

    /// The tensors of the finished dict.
    fn state_dict(mut self, result: Value<'a>) -> Result<Vec<PickledTensor<'a>>, String> {
        let Value::Dict(dict) = result else {
            return Err(format!("describes {}, not a dict of tensors", result.kind()));
        };
        let items = self.dicts.get_mut(dict).map(std::mem::take).unwrap_or_default();
        if items.len() > MAX_TENSORS {
            return Err(format!("{} entries; at most {MAX_TENSORS}", items.len()));
        }
        let mut names = HashSet::with_capacity(items.len());
        let mut tensors = Vec::with_capacity(items.len());
        for (key, value) in items {
            let Value::Str(name) = key else {
                return Err(format!("{} is a key; names are strings", key.kind()));
            };
            if name.len() > MAX_NAME {
                return Err(format!("a name of {} bytes; at most {MAX_NAME}", name.len()));
            }
            let Value::Tensor(number) = value else {
                return Err(format!("entry {name:?} is {}, not a tensor", value.kind()));
            };
            if !names.insert(name) {
                return Err(format!("two entries {name:?}"));
            }
            let Rebuilt { storage, offset, shape } =
                self.tensors.get(number).ok_or("no such tensor")?;
            let (storage, offset, shape) = (*storage, *offset, shape.clone());
            tensors.push(PickledTensor { name: name.to_owned(), storage, offset, shape });
        }
        Ok(tensors)
    }
}
