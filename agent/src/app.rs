//! Wiring: builds every part from the configuration and joins them; the only file that knows all.
