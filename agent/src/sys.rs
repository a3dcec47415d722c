//! The only place with `unsafe`: system calls that no safe crate wraps.
#![allow(unsafe_code, reason = "each call is wrapped safely here so that nothing else needs it")]
