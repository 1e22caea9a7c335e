//! An answer while it is written.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::generate::Generation;
use crate::generate::engine::Ticket;
use crate::generate::request::Event;
use crate::options::CancelToken;

/// The pieces of an answer as they become certain; made by [`Pipeline::stream`].
///
/// An iterator of whole UTF-8 pieces that concatenate to [`Generation::text`] byte for byte.
/// Dropping it cancels the request within one step of the engine.
///
/// [`Pipeline::stream`]: crate::Pipeline::stream
pub struct Stream {
    ticket: Ticket,
    generation: Option<Generation>,
    ended: bool,
}

/// What [`Stream::next_within`] found.
#[derive(Debug)]
#[non_exhaustive]
pub enum StreamEvent {
    /// More text.
    Piece(String),
    /// Nothing yet.
    Pending,
    /// The answer is complete; [`Stream::finish`] gives it.
    End,
}

impl Stream {
    pub(super) fn new(ticket: Ticket) -> Self {
        Self { ticket, generation: None, ended: false }
    }

    /// The next piece, or [`StreamEvent::Pending`] when none came within `timeout`.
    ///
    /// For callers that must look up now and then, such as an interpreter with signals to handle.
    pub fn next_within(&mut self, timeout: Duration) -> Result<StreamEvent> {
        if self.ended {
            return Ok(StreamEvent::End);
        }
        match self.ticket.next_within(timeout) {
            None => Ok(StreamEvent::Pending),
            Some(event) => Ok(self.take_event(event)?.map_or(StreamEvent::End, StreamEvent::Piece)),
        }
    }

    /// Asks the engine to stop; the text so far stays, as a cancelled [`Generation`].
    pub fn cancel(&self) {
        self.ticket.cancel();
    }

    /// A token that stops this request alone, from any thread, while another reads the stream.
    pub fn cancel_token(&self) -> CancelToken {
        self.ticket.cancel_token()
    }

    /// Waits for the end and gives the whole answer; pieces not yet read are in its text.
    pub fn finish(mut self) -> Result<Generation> {
        while !self.ended {
            let event = self.ticket.next();
            self.take_event(event)?;
        }
        self.generation.ok_or(Error::Closed)
    }

    /// The whole answer, once the iterator has ended.
    pub fn generation(&self) -> Option<&Generation> {
        self.generation.as_ref()
    }

    fn take_event(&mut self, event: Event) -> Result<Option<String>> {
        match event {
            Event::Piece(piece) => Ok(Some(piece)),
            Event::Answer(generation) => {
                self.generation = Some(*generation);
                self.ended = true;
                Ok(None)
            }
            Event::Failed(error) => {
                self.ended = true;
                Err(error)
            }
            Event::Numbers(_) => {
                self.ended = true;
                Err(Error::Internal("numbers in a stream of text".to_owned()))
            }
        }
    }
}

impl Iterator for Stream {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        if self.ended {
            return None;
        }
        let event = self.ticket.next();
        self.take_event(event).transpose()
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("ended", &self.ended).finish_non_exhaustive()
    }
}
