//! Types, constants and pure logic shared by the kernel half and the agent.
#![cfg_attr(not(test), no_std)]
