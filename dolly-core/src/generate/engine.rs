//! The handle callers hold: starts the scheduler's thread, hands it requests, stops it.
//!
//! The thread belongs to a process. After `fork` a child has the weights and no thread, so the
//! handle notes the process it was started in and starts a new thread in a child.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::generate::request::{Control, Event, Request, Work};
use crate::generate::scheduler::Scheduler;
use crate::model::NeoX;

/// What the scheduler may use.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Most sequences that share a step.
    pub max_batch: usize,
    /// Most prompt tokens run in one step.
    pub prefill_chunk: usize,
    /// Bytes for the caches of all live sequences and the kept prefixes together.
    pub cache_bytes: Option<u64>,
    /// Bytes for kept prefixes.
    pub prefix_bytes: u64,
}

/// Seen by callers and the scheduler alike.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    closing: AtomicBool,
    cache_bytes: AtomicU64,
    prefix_bytes: AtomicU64,
    workspace_bytes: AtomicU64,
}

/// Bytes that the scheduler held after the last step.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Held {
    /// Caches of live sequences.
    pub cache: u64,
    /// Kept prefixes.
    pub prefixes: u64,
    /// Buffers of a step.
    pub workspace: u64,
}

impl Shared {
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub fn set_memory(&self, held: Held) {
        self.cache_bytes.store(held.cache, Ordering::Relaxed);
        self.prefix_bytes.store(held.prefixes, Ordering::Relaxed);
        self.workspace_bytes.store(held.workspace, Ordering::Relaxed);
    }

    fn memory(&self) -> Held {
        Held {
            cache: self.cache_bytes.load(Ordering::Relaxed),
            prefixes: self.prefix_bytes.load(Ordering::Relaxed),
            workspace: self.workspace_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Runs the scheduler of some backend: hides the backend's type from the handle.
trait Run: Send + Sync {
    fn run(self: Arc<Self>, requests: Receiver<Request>, limits: Limits, shared: Arc<Shared>);
}

impl<B: Backend> Run for NeoX<B> {
    fn run(self: Arc<Self>, requests: Receiver<Request>, limits: Limits, shared: Arc<Shared>) {
        Scheduler::new(self, limits, shared).run(&requests);
    }
}

/// A running scheduler.
struct Running {
    process: u32,
    model: Arc<dyn Run>,
    shared: Arc<Shared>,
    requests: Option<Sender<Request>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Running {
    fn start(model: Arc<dyn Run>, limits: Limits) -> Result<Self> {
        let (requests, receiver) = channel();
        let shared = Arc::<Shared>::default();
        let (runner, seen) = (Arc::clone(&model), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("dolly-engine".to_owned())
            .spawn(move || runner.run(receiver, limits, seen))
            .map_err(|error| Error::Internal(format!("starting the engine's thread: {error}")))?;
        Ok(Self {
            process: std::process::id(),
            model,
            shared,
            requests: Some(requests),
            thread: Mutex::new(Some(thread)),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.process != std::process::id() {
            // The thread exists only in the parent: there is nothing to join.
            std::mem::forget(thread);
            return;
        }
        self.shared.closing.store(true, Ordering::Release);
        drop(self.requests.take());
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the scheduler has no reader left.
            let _ = thread.join();
        }
    }
}

/// Hands requests to the scheduler of one model.
pub(crate) struct Engine {
    running: ArcSwapOption<Running>,
    limits: Limits,
}

impl Engine {
    pub fn start<B: Backend>(model: NeoX<B>, limits: Limits) -> Result<Self> {
        let running = Running::start(Arc::new(model), limits.clone())?;
        Ok(Self { running: ArcSwapOption::from_pointee(running), limits })
    }

    /// Bytes held after the last step.
    pub fn memory(&self) -> Held {
        self.running.load().as_ref().map_or_else(Held::default, |running| running.shared.memory())
    }

    pub fn is_closed(&self) -> bool {
        self.running.load().is_none()
    }

    /// Ends every request with [`Error::Closed`] and lets go of the weights.
    pub fn close(&self) {
        if let Some(running) = self.running.swap(None) {
            running.shared.closing.store(true, Ordering::Release);
            // Wakes a scheduler that waits for requests: one that does nothing.
            let (events, _) = channel();
            let control = Control::none();
            let work = Work::Logits(Vec::new());
            let wake = Request { ids: Vec::new(), work, control, events };
            if let Some(requests) = &running.requests {
                let _ = requests.send(wake);
            }
        }
    }

    /// Queues a request; its results come through the ticket.
    pub fn submit(&self, ids: Vec<u32>, work: Work, control: Control) -> Result<Ticket> {
        let running = self.running()?;
        let (events, receiver) = channel();
        let dropped = control.dropped.clone();
        let request = Request { ids, work, control, events };
        let requests = running.requests.as_ref().ok_or(Error::Closed)?;
        requests.send(request).map_err(|_| Error::Closed)?;
        Ok(Ticket { events: receiver, dropped })
    }

    /// The scheduler of this process, started anew in a forked child.
    fn running(&self) -> Result<Arc<Running>> {
        let running = self.running.load_full().ok_or(Error::Closed)?;
        if running.process == std::process::id() {
            return Ok(running);
        }
        let fresh = Arc::new(Running::start(Arc::clone(&running.model), self.limits.clone())?);
        let before = self.running.compare_and_swap(&running, Some(Arc::clone(&fresh)));
        match before.as_ref() {
            Some(current) if current.process == std::process::id() => Ok(Arc::clone(current)),
            _ => Ok(fresh),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

/// The caller's end of one request; dropping it cancels the request.
pub(crate) struct Ticket {
    events: Receiver<Event>,
    dropped: crate::CancelToken,
}

impl Ticket {
    /// The next event; an engine that is gone is [`Error::Closed`].
    pub fn next(&self) -> Event {
        self.events.recv().unwrap_or(Event::Failed(Error::Closed))
    }

    /// The next event, or `None` when none came within `timeout`.
    pub fn next_within(&self, timeout: Duration) -> Option<Event> {
        match self.events.recv_timeout(timeout) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Event::Failed(Error::Closed)),
        }
    }

    /// Asks the engine to stop; the last event still comes.
    pub fn cancel(&self) {
        self.dropped.cancel();
    }

    /// What [`cancel`](Self::cancel) triggers, for other threads.
    pub fn cancel_token(&self) -> crate::CancelToken {
        self.dropped.clone()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.dropped.cancel();
    }
}
