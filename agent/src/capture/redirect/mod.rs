//! Bytes that go straight from socket to socket, past TCP.

pub mod selftest;
