//! What is decided, first with a stand-in for the rest of the centre, then with all of its parts.

mod accepted;
mod town;
mod whole;
