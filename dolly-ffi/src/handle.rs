//! Handles: numbers in the guise of pointers, looked up and never dereferenced.
//!
//! A handle holds, from the highest bit down, 8 bits of type, 32 bits of generation and 24 bits of
//! index into a table. The type's bits lie between 0xD1 and 0xDF, where no user-space address of a
//! 64-bit system lies, so neither an address nor a small number can be a handle. Each slot of the
//! table counts its generations up whenever it is freed and is retired when the count ends: a
//! freed handle never becomes valid again. A handle is valid when its slot is live, with the same
//! generation and type.
//!
//! The table is the only state of the process this library keeps. Its lock is held for the
//! look-up alone, never while an object works, is dropped, or calls back.

use std::any::Any;
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, TryLockError};

use crate::guard::guard;
use crate::status::{Failure, dolly_status};

const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 32;
const TAG_SHIFT: u32 = INDEX_BITS + GENERATION_BITS;
/// Added to [`Handle::TAG`]; makes the top byte one of addresses no process has.
const TAG_BASE: u8 = 0xD0;
const NO_SLOT: u32 = u32::MAX;

/// An opaque type of the header and what stands behind it.
pub(crate) trait Handle {
    /// The object a handle leads to.
    type Object: Any + Send + Sync;
    /// The type's number, 1 to 15, different for every type.
    const TAG: u8;
    /// The type's name in C.
    const NAME: &'static str;
}

struct Slot {
    generation: u32,
    /// The type's byte; 0 in a free slot.
    tag: u8,
    object: Option<Arc<dyn Any + Send + Sync>>,
    next_free: u32,
}

struct Table {
    slots: Vec<Slot>,
    first_free: u32,
    live: usize,
}

static TABLE: RwLock<Table> =
    RwLock::new(Table { slots: Vec::new(), first_free: NO_SLOT, live: 0 });

fn read() -> RwLockReadGuard<'static, Table> {
    TABLE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Changes the table, then delivers the cancels that could not look into it meanwhile.
fn change<R>(work: impl FnOnce(&mut Table) -> R) -> R {
    let result = work(&mut TABLE.write().unwrap_or_else(PoisonError::into_inner));
    crate::cancel::deliver_deferred();
    result
}

fn tag<H: Handle>() -> u8 {
    TAG_BASE + H::TAG
}

fn pack(tag: u8, generation: u32, index: u32) -> usize {
    usize::from(tag) << TAG_SHIFT | (generation as usize) << INDEX_BITS | index as usize
}

fn unpack(address: usize) -> (u8, u32, usize) {
    let tag = (address >> TAG_SHIFT) as u8;
    let generation = (address >> INDEX_BITS) as u32;
    (tag, generation, address & ((1 << INDEX_BITS) - 1))
}

impl Table {
    fn insert(&mut self, tag: u8, object: Arc<dyn Any + Send + Sync>) -> Result<usize, Failure> {
        let full = || Failure::new(dolly_status::Memory, "no room for another handle");
        if self.first_free == NO_SLOT {
            let index = u32::try_from(self.slots.len()).map_err(|_| full())?;
            if index >> INDEX_BITS != 0 {
                return Err(full());
            }
            self.slots.try_reserve(1).map_err(|_| full())?;
            self.slots.push(Slot { generation: 1, tag: 0, object: None, next_free: NO_SLOT });
            self.first_free = index;
        }
        let index = self.first_free;
        let slot = self.slots.get_mut(index as usize).ok_or_else(full)?;
        self.first_free = slot.next_free;
        slot.tag = tag;
        slot.object = Some(object);
        self.live += 1;
        Ok(pack(tag, slot.generation, index))
    }

    fn get(&self, address: usize) -> Option<&Arc<dyn Any + Send + Sync>> {
        let (tag, generation, index) = unpack(address);
        let slot = self.slots.get(index)?;
        let same = slot.generation == generation && slot.tag == tag;
        slot.object.as_ref().filter(|_| same)
    }

    fn remove(&mut self, address: usize) -> Option<Arc<dyn Any + Send + Sync>> {
        let (tag, generation, index) = unpack(address);
        let slot = self.slots.get_mut(index)?;
        if slot.generation != generation || slot.tag != tag {
            return None;
        }
        let object = slot.object.take()?;
        slot.tag = 0;
        self.live -= 1;
        // The slot of the last generation is never used again.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            slot.next_free = self.first_free;
            self.first_free = index as u32;
        }
        Some(object)
    }
}

fn refused<H: Handle>(null: bool) -> Failure {
    match null {
        true => Failure::new(dolly_status::NullPointer, format!("{} is NULL", H::NAME)),
        false => {
            let message = format!("not a live {}: freed, forged or another type", H::NAME);
            Failure::new(dolly_status::InvalidHandle, message)
        }
    }
}

/// A new handle to an object.
pub(crate) fn insert<H: Handle>(object: H::Object) -> Result<*mut H, Failure> {
    insert_shared(Arc::new(object))
}

/// A new handle to an object that others may hold too.
pub(crate) fn insert_shared<H: Handle>(object: Arc<H::Object>) -> Result<*mut H, Failure> {
    change(|table| table.insert(tag::<H>(), object)).map(without_provenance_mut)
}

/// The object of a handle; it lives on while the caller holds it, whoever frees the handle.
pub(crate) fn get<H: Handle>(handle: *const H) -> Result<Arc<H::Object>, Failure> {
    let address = handle.addr();
    let object = match unpack(address).0 == tag::<H>() {
        true => read().get(address).cloned(),
        false => None,
    };
    let object = object.and_then(|object| object.downcast::<H::Object>().ok());
    object.ok_or_else(|| refused::<H>(handle.is_null()))
}

/// As [`get`], with NULL standing for "not given".
pub(crate) fn get_optional<H: Handle>(handle: *const H) -> Result<Option<Arc<H::Object>>, Failure> {
    match handle.is_null() {
        true => Ok(None),
        false => get(handle).map(Some),
    }
}

/// Uses an object without counting it, allocating or waiting: for signal handlers.
///
/// [`dolly_status::Busy`] when the table is being changed at this moment. Messages are constant,
/// so that a failure allocates nothing either.
pub(crate) fn try_with<H: Handle>(
    handle: *const H,
    work: impl FnOnce(&H::Object),
) -> Result<(), Failure> {
    let table = match TABLE.try_read() {
        Ok(table) => table,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            return Err(Failure::new(dolly_status::Busy, "handles are being changed"));
        }
    };
    if handle.is_null() {
        return Err(Failure::new(dolly_status::NullPointer, "the handle is NULL"));
    }
    let address = handle.addr();
    let object = table.get(address).filter(|_| unpack(address).0 == tag::<H>());
    match object.and_then(|object| object.downcast_ref::<H::Object>()) {
        Some(object) => {
            work(object);
            Ok(())
        }
        None => Err(Failure::new(dolly_status::InvalidHandle, "the handle is not live")),
    }
}

/// Ends a handle and gives its object back, to be dropped outside the table's lock.
pub(crate) fn remove<H: Handle>(handle: *mut H) -> Result<Option<Arc<H::Object>>, Failure> {
    if handle.is_null() {
        return Ok(None);
    }
    let address = handle.addr();
    let object = match unpack(address).0 == tag::<H>() {
        true => change(|table| table.remove(address)),
        false => None,
    };
    let object = object.and_then(|object| object.downcast::<H::Object>().ok());
    object.map(Some).ok_or_else(|| refused::<H>(false))
}

/// The body of every `_free`.
pub(crate) fn free<H: Handle>(handle: *mut H) -> dolly_status {
    // SAFETY: NULL is allowed as the place of an error.
    unsafe { guard(null_mut(), || remove(handle).map(drop)) }
}

/// Handles that were given out and not freed.
pub(crate) fn live() -> usize {
    read().live
}

#[cfg(test)]
mod tests;
