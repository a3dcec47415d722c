//! Numbers and addresses as text, without the machinery of `fmt`: a line has a dozen of them.

use std::{fmt::Write, net::SocketAddr};

/// Appends `n`.
pub fn decimal(line: &mut String, n: u64) {
    padded(line, n, 1);
}

/// Appends `n` with zeros in front up to `width` digits, 20 at most.
pub fn padded(line: &mut String, mut n: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len();
    while n > 0 {
        start -= 1;
        digits[start] += (n % 10) as u8;
        n /= 10;
    }
    let start = start.min(digits.len().saturating_sub(width));
    line.extend(digits[start..].iter().map(|digit| char::from(*digit)));
}

/// Appends `address`.
pub fn address(line: &mut String, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => {
            for (i, octet) in v4.ip().octets().into_iter().enumerate() {
                if i > 0 {
                    line.push('.');
                }
                decimal(line, octet.into());
            }
            line.push(':');
            decimal(line, v4.port().into());
        }
        SocketAddr::V6(v6) => {
            // Writing to a String cannot fail.
            let _ = write!(line, "{v6}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_like_what_fmt_writes() {
        for n in [0, 1, 9, 10, 99, 100, 12_345, u64::MAX] {
            let mut line = String::new();
            decimal(&mut line, n);
            line.push(' ');
            padded(&mut line, n, 3);
            line.push(' ');
            padded(&mut line, n, 20);
            assert_eq!(line, format!("{n} {n:03} {n:020}"));
        }
        for text in ["0.0.0.0:0", "127.0.0.1:80", "255.10.100.9:65535", "[::1]:80", "[fe80::1%2]:5"] {
            let mut line = String::new();
            address(&mut line, text.parse().unwrap());
            assert_eq!(line, text);
        }
    }
}
