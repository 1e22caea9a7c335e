use super::*;
use proptest::prelude::*;

struct Apple;
struct Pear;

impl Handle for Apple {
    type Object = String;
    const TAG: u8 = 14;
    const NAME: &'static str = "apple";
}

impl Handle for Pear {
    type Object = String;
    const TAG: u8 = 15;
    const NAME: &'static str = "pear";
}

fn status<T>(result: Result<T, Failure>) -> dolly_status {
    result.err().map_or(dolly_status::Ok, |failure| failure.status)
}

fn apple(text: &str) -> *mut Apple {
    insert(text.to_owned()).unwrap()
}

#[test]
fn a_handle_leads_to_its_object_until_freed() {
    let handle = apple("a");
    assert_eq!(*get(handle).unwrap(), "a");
    let held = get(handle).unwrap();
    assert_eq!(free(handle), dolly_status::Ok);
    assert_eq!(*held, "a");
    assert_eq!(status(get(handle)), dolly_status::InvalidHandle);
    assert_eq!(free(handle), dolly_status::InvalidHandle);
}

#[test]
fn null_is_named_and_freed_quietly() {
    assert_eq!(status(get::<Apple>(null_mut())), dolly_status::NullPointer);
    assert!(get_optional::<Apple>(null_mut()).unwrap().is_none());
    assert_eq!(free::<Apple>(null_mut()), dolly_status::Ok);
}

#[test]
fn another_type_is_refused_and_stays_live() {
    let handle = apple("a");
    assert_eq!(status(get(handle.cast::<Pear>())), dolly_status::InvalidHandle);
    assert_eq!(free(handle.cast::<Pear>()), dolly_status::InvalidHandle);
    assert_eq!(status(try_with(handle.cast::<Pear>(), |_| ())), dolly_status::InvalidHandle);
    assert_eq!(free(handle), dolly_status::Ok);
}

#[test]
fn a_slot_used_again_gives_another_handle() {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let handle = apple("a");
        assert!(seen.insert(handle.addr()));
        free(handle);
    }
    for old in seen {
        let old = without_provenance_mut::<Apple>(old);
        assert_eq!(status(get(old)), dolly_status::InvalidHandle);
    }
}

#[test]
fn a_slot_is_retired_after_its_last_generation() {
    let mut table = Table { slots: Vec::new(), first_free: NO_SLOT, live: 0 };
    let first = table.insert(0xDE, Arc::new(0_u8)).unwrap();
    assert!(table.remove(first).is_some());
    table.slots[0].generation = u32::MAX;
    let last = table.insert(0xDE, Arc::new(0_u8)).unwrap();
    assert_eq!(unpack(last), (0xDE, u32::MAX, 0));
    assert!(table.remove(last).is_some());
    let next = table.insert(0xDE, Arc::new(0_u8)).unwrap();
    assert_eq!(unpack(next), (0xDE, 1, 1));
    assert!(table.get(last).is_none() && table.get(first).is_none());
}

#[test]
fn a_cancel_during_a_change_is_delivered_after_it() {
    use crate::cancel::{dolly_cancel, dolly_cancel_trigger};
    let token = dolly_core::CancelToken::new();
    let cancel = insert::<dolly_cancel>(token.clone()).unwrap();
    change(|_| {
        // As a signal handler would that interrupts a call which frees a handle.
        // SAFETY: handles are looked up, never dereferenced.
        assert_eq!(unsafe { dolly_cancel_trigger(cancel) }, dolly_status::Ok);
        assert!(!token.is_cancelled());
    });
    assert!(token.is_cancelled());
    free(cancel);
}

#[test]
fn threads_free_what_others_use() {
    let handles: Vec<usize> = (0..64).map(|i| apple(&i.to_string()).addr()).collect();
    let freed = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (index, address) in handles.iter().enumerate() {
                    let handle = without_provenance_mut::<Apple>(*address);
                    if let Ok(object) = get(handle) {
                        assert_eq!(*object, index.to_string());
                    }
                    if free(handle) == dolly_status::Ok {
                        freed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(freed.into_inner(), 64);
}

#[test]
fn addresses_of_the_process_are_no_handles() {
    let handle = apple("a");
    let (on_heap, on_stack) = (Box::new(0_u64), 0_u64);
    let addresses =
        [(&raw const *on_heap).addr(), (&raw const on_stack).addr(), live as *const () as usize];
    for address in addresses {
        assert_eq!(
            status(get(without_provenance_mut::<Apple>(address))),
            dolly_status::InvalidHandle
        );
    }
    free(handle);
}

proptest! {
    #[test]
    fn packing_keeps_every_part(tag: u8, generation: u32, index in 0_u32..1 << INDEX_BITS) {
        let address = pack(tag, generation, index);
        prop_assert_eq!(unpack(address), (tag, generation, index as usize));
    }

    #[test]
    fn any_other_number_is_refused(address: usize, flip in 0_u32..64) {
        let handle = apple("a");
        for forged in [address, handle.addr() ^ (1 << flip)] {
            // Other tests of this process own other live apples: only numbers that are none count.
            let other = without_provenance_mut::<Pear>(forged);
            if forged != 0 {
                prop_assert_eq!(status(get(other)), dolly_status::InvalidHandle);
                prop_assert_eq!(free(other), dolly_status::InvalidHandle);
            }
        }
        let tag = handle.addr() ^ (0xFF << TAG_SHIFT);
        let tag = without_provenance_mut::<Apple>(tag);
        prop_assert_eq!(status(get(tag)), dolly_status::InvalidHandle);
        let generation = without_provenance_mut::<Apple>(handle.addr() ^ (1 << (INDEX_BITS + 31)));
        prop_assert_eq!(status(get(generation)), dolly_status::InvalidHandle);
        prop_assert_eq!(free(handle), dolly_status::Ok);
    }
}
