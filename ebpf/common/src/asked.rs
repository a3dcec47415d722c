//! What a program can ask of a socket that only TCP keeps.

const SOL_SOCKET: i32 = 1;
const SO_RCVLOWAT: i32 = 18;
const SO_ZEROCOPY: i32 = 60;
const IPPROTO_TCP: i32 = 6;
const TCP_ULP: i32 = 31;
const TCP_INQ: i32 = 36;

/// An option that redirect cannot keep. Numbers are those of the agent's reasons.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To be told when memory that was sent from may be used again: `SO_ZEROCOPY`.
    Zerocopy = 5,
    /// Not to be woken for few bytes: `SO_RCVLOWAT`.
    LowWater = 6,
    /// A protocol on top of TCP inside the kernel: `TCP_ULP`.
    Ulp = 7,
    /// To be told with each read what is left: `TCP_INQ`.
    Inquiry = 8,
}

impl Asked {
    /// The one with this number.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            5 => Some(Self::Zerocopy),
            6 => Some(Self::LowWater),
            7 => Some(Self::Ulp),
            8 => Some(Self::Inquiry),
            _ => None,
        }
    }

    /// What is asked for by setting this option of a TCP socket. A value that is an `int` is `value`; any other
    /// is as good as 1.
    #[inline(always)]
    pub const fn by(level: i32, option: i32, value: i32) -> Option<Self> {
        match (level, option) {
            (SOL_SOCKET, SO_ZEROCOPY) if value != 0 => Some(Self::Zerocopy),
            // The kernel takes 0 for 1, which is what sockets have from the start.
            (SOL_SOCKET, SO_RCVLOWAT) if value != 0 && value != 1 => Some(Self::LowWater),
            (IPPROTO_TCP, TCP_ULP) => Some(Self::Ulp),
            (IPPROTO_TCP, TCP_INQ) if value != 0 => Some(Self::Inquiry),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back() {
        for asked in [Asked::Zerocopy, Asked::LowWater, Asked::Ulp, Asked::Inquiry] {
            assert_eq!(Asked::from_number(asked as u32), Some(asked));
        }
        assert_eq!(Asked::from_number(0), None);
    }

    #[test]
    fn only_what_changes_something_is_asked_for() {
        assert_eq!(Asked::by(1, 60, 1), Some(Asked::Zerocopy));
        assert_eq!(Asked::by(1, 60, 0), None);
        assert_eq!(Asked::by(1, 18, 100), Some(Asked::LowWater));
        assert_eq!(Asked::by(1, 18, -1), Some(Asked::LowWater), "as much as there is room for");
        assert_eq!((Asked::by(1, 18, 0), Asked::by(1, 18, 1)), (None, None));
        assert_eq!(Asked::by(6, 31, 0), Some(Asked::Ulp));
        assert_eq!(Asked::by(6, 36, 1), Some(Asked::Inquiry));
        assert_eq!(Asked::by(6, 36, 0), None);
        assert_eq!((Asked::by(6, 1, 1), Asked::by(41, 18, 100)), (None, None), "TCP_NODELAY; another level");
    }
}
