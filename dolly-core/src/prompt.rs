//! Dolly's prompt as segments: framing tokens and user text never mix.
