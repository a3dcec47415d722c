//! The true address of a caller from elsewhere, for the program that the agent calls on its behalf.
//!
//! The agent keeps it with its own socket before it dials. The program's socket finds that socket, the other
//! end of its connection, by the addresses of both; so it is there exactly as long as the connection is.

use crate::{Address, normalise, words};

/// A caller's address; kept with the agent's socket, and with the program's once it has asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub addr: Address,
    /// Its port, network byte order.
    pub port: u16,
    /// Always 0.
    pub reserved: u16,
}

/// Whether a connection between these two addresses stays within one network namespace, as every connection
/// between the agent and a program does.
#[inline(always)]
pub fn is_within(a: &Address, b: &Address) -> bool {
    if let (Some([127, ..]), Some([127, ..])) = (normalise(a), normalise(b)) {
        return true;
    }
    let (a, b) = (words(a), words(b));
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

// No hidden padding.
const _: () = assert!(size_of::<Client>() == 16 + 2 + 2);

#[cfg(feature = "user")]
mod pod {
    #![allow(unsafe_code, reason = "aya wants an unsafe marker on every type that maps hold")]
    // SAFETY: `repr(C)`, integers only, no padding (asserted above).
    unsafe impl aya::Pod for super::Client {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapped;

    #[test]
    fn what_stays_within_a_namespace() {
        let (own, other) = (mapped([10, 0, 0, 1]), mapped([10, 0, 0, 2]));
        let mut six = [0; 16];
        six[15] = 1;
        assert!(is_within(&own, &own) && is_within(&six, &six));
        assert!(is_within(&mapped([127, 0, 0, 1]), &mapped([127, 0, 0, 53])));
        assert!(!is_within(&own, &other) && !is_within(&own, &six) && !is_within(&mapped([127, 0, 0, 1]), &own));
    }
}
