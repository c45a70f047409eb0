//! The kinds of stockade.dev.
