//! What the next step runs, and which rows need not be run because they are known.
//!
//! A sequence that has run nothing yet looks for its first tokens in the kept prefixes and in the
//! caches of the other live sequences, and copies the longest match. Where another one is about to
//! run them, it waits a step: requests that arrive together read what they share once.

use crate::backend::{Backend, Span};
use crate::generate::live::Live;
use crate::generate::prefix::common;
use crate::generate::request::Work;
use crate::generate::scheduler::Scheduler;

/// Rows that are worth a step's wait: about what a pass over the weights costs in rows.
const WORTH_A_STEP: usize = 16;
/// Most drafted tokens of all sequences in a step: beyond it a step is bound by arithmetic, and
/// drafts that do not hold cost what they may save.
const DRAFT_ROWS: usize = 64;

/// The rows of one step; its memory serves the next one.
#[derive(Default)]
pub(super) struct Plan {
    pub ids: Vec<u32>,
    /// The live sequences that take part, ascending.
    pub members: Vec<usize>,
    /// Their rows.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted, ascending, and whose they are.
    pub wanted_rows: Vec<usize>,
    pub wanted: Vec<Wanted>,
    drafted: usize,
}

/// A row's place: its logits are those after the token `input` at `position` of a live sequence.
pub(super) struct Wanted {
    pub member: usize,
    pub position: usize,
    pub input: u32,
}

impl Plan {
    fn clear(&mut self) {
        self.ids.clear();
        self.members.clear();
        self.spans.clear();
        self.wanted_rows.clear();
        self.wanted.clear();
        self.drafted = 0;
    }

    fn add(&mut self, member: usize, position: usize, ids: &[u32]) {
        self.spans.push(Span { first_row: self.ids.len(), rows: ids.len(), position });
        self.members.push(member);
        self.ids.extend_from_slice(ids);
    }

    /// Tokens that sequence `index` will have in its cache after the step.
    fn cached_after(&self, index: usize, now: usize) -> usize {
        let span = self.members.binary_search(&index).ok().and_then(|at| self.spans.get(at));
        span.map_or(now, |span| span.position + span.rows)
    }
}

impl<B: Backend> Scheduler<B> {
    pub(super) fn plan_step(&mut self, plan: &mut Plan) {
        plan.clear();
        let mut chunk = self.limits.prefill_chunk;
        for index in 0..self.live.len() {
            if self.live[index].decodes() {
                plan_decode(&mut self.live[index], index, plan);
                continue;
            }
            if chunk == 0 || (self.live[index].cached == 0 && self.share(index, plan)) {
                continue;
            }
            let live = &self.live[index];
            let end = live.request.ids.len().min(live.cached + chunk);
            let ids = &live.request.ids[live.cached..end];
            chunk -= ids.len();
            plan.add(index, live.cached, ids);
        }
        self.want(plan);
    }

    /// Notes which of the planned rows' logits are wanted.
    fn want(&self, plan: &mut Plan) {
        for (member, span) in plan.members.iter().zip(&plan.spans) {
            let request = &self.live[*member].request;
            for (row, position) in (span.first_row..).zip(span.position..).take(span.rows) {
                if request.work.wants(position, request.ids.len()) {
                    let input = plan.ids[row];
                    plan.wanted_rows.push(row);
                    plan.wanted.push(Wanted { member: *member, position, input });
                }
            }
        }
    }

    /// Copies what is known of a sequence's first rows into its empty cache; or says to wait,
    /// because this step runs more of them.
    fn share(&mut self, index: usize, plan: &Plan) -> bool {
        let wanted = self.live[index].shared_ids();
        if self.prefixes.is_off() || wanted.is_empty() {
            return false;
        }
        let (mut donor, mut ready, mut coming) = (None, self.prefixes.known(wanted), 0);
        for (other, live) in self.live.iter().enumerate().filter(|(other, _)| *other != index) {
            let same = common(&live.request.ids, wanted);
            if same.min(live.cached) > ready {
                (donor, ready) = (Some(other), same.min(live.cached));
            }
            coming = coming.max(same.min(plan.cached_after(other, live.cached)));
        }
        if coming >= ready + WORTH_A_STEP {
            return true;
        }
        if ready > 0 {
            self.copy_rows(index, donor, ready);
        }
        false
    }

    /// Fills a sequence's cache from the live sequence `donor`, or from the kept prefixes.
    fn copy_rows(&mut self, index: usize, donor: Option<usize>, rows: usize) {
        let backend = self.model.backend();
        let copied = match donor.and_then(|donor| self.live.get_disjoint_mut([donor, index]).ok()) {
            Some([donor, live]) => {
                backend.copy_cache(&donor.cache, 0, &mut live.cache, 0, rows).map(|()| rows)
            }
            None => {
                let Live { request, cache, rows_alone, .. } = &mut self.live[index];
                self.prefixes.copy_to(backend, &request.ids[..*rows_alone], cache)
            }
        };
        let live = &mut self.live[index];
        match copied {
            Ok(rows) => live.cached = rows,
            // They are run instead, over whatever was copied.
            Err(error) => tracing::debug!(%error, "known rows were not copied"),
        }
        if let Work::Answer(answer) = &mut live.request.work {
            answer.note_cached(live.cached);
        }
    }
}

/// The last token, and what is guessed to follow it.
fn plan_decode<B: Backend>(live: &mut Live<B>, index: usize, plan: &mut Plan) {
    let Work::Answer(answer) = &mut live.request.work else { return };
    let Some(last) = answer.token_ids().last().copied() else { return };
    plan.add(index, live.cached, &[last]);
    let draft = answer.draft(&live.request.ids, DRAFT_ROWS - plan.drafted);
    plan.drafted += draft.len();
    plan.ids.extend_from_slice(draft);
    if let Some(span) = plan.spans.last_mut() {
        span.rows += draft.len();
    }
}
