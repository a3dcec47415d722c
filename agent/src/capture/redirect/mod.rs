//! Bytes that go straight from socket to socket, past TCP.

pub mod learn;
pub mod learner;
pub mod selftest;
