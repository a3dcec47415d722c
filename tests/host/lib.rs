//! Library `host`: what whole-system tests are made of.
