//! Questions for names: how a program's resolver is written into the address that its question goes to.
//!
//! The agent must learn which resolver was asked, and the program must see that resolver as the source of
//! the answer. A datagram carries neither, so the destination does: resolvers get numbers, and IPv4 number
//! `n` stands for `127.83.(n >> 8).(n & 255)`, IPv6 number `n` for a port on `::1`, because `::1` is the only
//! IPv6 address of the loopback device.

use crate::{Address, normalise, words};

/// The port of questions.
pub const PORT: u16 = 53;
/// Resolvers with an IPv6 address that can be told apart in one network namespace.
pub const RESOLVERS6: usize = 8;
/// Room in the table of resolvers; those beyond are asked directly.
pub const MAX_RESOLVERS: usize = 4096;
/// How many places are tried for a resolver before it is asked directly.
pub const TRIES: u32 = 8;

/// IPv4 numbers are below this, IPv6 numbers begin here.
const FIRST6: u32 = 1 << 16;
const SECOND_BYTE: u8 = 83;
const IPPROTO_UDP: u32 = 17;
const SOCK_DGRAM: u32 = 2;

/// Where questions are answered in one network namespace, ports on loopback in network byte order, 0 for
/// none. All zero but for the reserved field means that names are off.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsListener {
    /// UDP on every address of 127.83.0.0/16.
    pub udp4: u16,
    /// TCP on 127.0.0.1.
    pub tcp4: u16,
    /// TCP on ::1.
    pub tcp6: u16,
    /// Always 0.
    pub reserved: u16,
    /// UDP on ::1, one port for each resolver.
    pub udp6: [u16; RESOLVERS6],
}

/// Whether this is a socket for datagrams (UDP), and so its questions are of interest here.
#[inline(always)]
pub const fn is_udp(kind: u32, protocol: u32) -> bool {
    kind == SOCK_DGRAM && protocol == IPPROTO_UDP
}

/// Whether a question to this address may be brought to the agent. Not those whose meaning depends on more
/// than the address (link-local IPv6 has a device), on the place of the asker (unspecified), that mean
/// several (multicast, broadcast), or that are stand-ins already.
#[inline(always)]
pub fn is_resolver(addr: &Address) -> bool {
    match normalise(addr) {
        Some([127, SECOND_BYTE, ..]) => false,
        Some([first, ..]) => first != 0 && first < 224,
        None => {
            let w = words(addr);
            let unspecified = w[0] == 0 && w[1] == 0 && w[2] == 0 && w[3] == 0;
            !unspecified && addr[0] != 0xff && !(addr[0] == 0xfe && addr[1] & 0xc0 == 0x80)
        }
    }
}

/// The number to try at the `nth` attempt (below [`TRIES`]) for the resolver `addr`. Numbers depend on the
/// address first, so that they are the same again after the table was lost.
#[inline(always)]
pub fn number(addr: &Address, nth: u32) -> u32 {
    match normalise(addr) {
        Some(v4) => {
            let hash = u32::from_be_bytes(v4).wrapping_mul(0x9e37_79b1);
            ((hash >> 16) + nth) & (FIRST6 - 1)
        }
        None => FIRST6 + (nth & (RESOLVERS6 as u32 - 1)),
    }
}

/// The address that stands for IPv4 resolver `number`.
#[inline(always)]
pub const fn stand_in(number: u32) -> [u8; 4] {
    [127, SECOND_BYTE, (number >> 8) as u8, number as u8]
}

/// The number that an address stands for.
#[inline(always)]
pub const fn number_of(stand_in: [u8; 4]) -> Option<u32> {
    match stand_in {
        [127, SECOND_BYTE, high, low] => Some((high as u32) << 8 | low as u32),
        _ => None,
    }
}

/// Number of the IPv6 resolver that the port at `place` of [`DnsListener::udp6`] stands for.
#[inline(always)]
pub const fn number6(place: usize) -> u32 {
    FIRST6 + place as u32
}

/// The opposite of [`number6`].
#[inline(always)]
pub const fn place6(number: u32) -> usize {
    (number & (RESOLVERS6 as u32 - 1)) as usize
}

// No hidden padding, and numbers of IPv6 resolvers are found by masking.
const _: () = {
    assert!(size_of::<DnsListener>() == 4 * 2 + 2 * RESOLVERS6);
    assert!(RESOLVERS6.is_power_of_two() && TRIES as usize >= RESOLVERS6);
};

#[cfg(feature = "user")]
mod pod {
    #![allow(unsafe_code, reason = "aya wants an unsafe marker on every type that maps hold")]
    // SAFETY: `repr(C)`, integers only, no padding (asserted above).
    unsafe impl aya::Pod for super::DnsListener {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapped;

    const V6: Address = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    #[test]
    fn stand_ins_lead_back_to_their_numbers() {
        for number in [0, 1, 255, 256, 65_535] {
            assert_eq!(number_of(stand_in(number)), Some(number));
        }
        assert_eq!(number_of([127, 0, 0, 1]), None);
        for place in 0..RESOLVERS6 {
            assert_eq!(place6(number6(place)), place);
            assert_eq!(number(&V6, place as u32), number6(place));
        }
        for addr in [mapped([8, 8, 8, 8]), mapped([255, 255, 255, 255]), mapped([0, 0, 0, 1])] {
            let tried: Vec<_> = (0..TRIES).map(|nth| number(&addr, nth)).collect();
            assert!(tried.iter().all(|n| *n < FIRST6), "{tried:?}");
            assert!(tried.windows(2).all(|w| w[0] != w[1]), "{tried:?}");
        }
    }

    #[test]
    fn what_may_be_a_resolver() {
        for yes in [mapped([127, 0, 0, 53]), mapped([10, 0, 0, 2]), V6, loopback6()] {
            assert!(is_resolver(&yes), "{yes:?}");
        }
        let mut link_local = V6;
        link_local[..2].copy_from_slice(&[0xfe, 0x80]);
        let mut multicast = V6;
        multicast[..2].copy_from_slice(&[0xff, 0x02]);
        let odd = [mapped([0, 0, 0, 0]), mapped([224, 0, 0, 251]), mapped([255; 4]), mapped(stand_in(7))];
        for no in odd.into_iter().chain([[0; 16], link_local, multicast]) {
            assert!(!is_resolver(&no), "{no:?}");
        }
    }

    fn loopback6() -> Address {
        crate::loopback(&V6)
    }

    #[test]
    fn only_udp() {
        assert!(is_udp(2, 17));
        assert!(!is_udp(1, 6) && !is_udp(2, 1) && !is_udp(2, 136));
    }
}
