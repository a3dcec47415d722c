//! The terminal: its size, whether it shows colors, and a picture refreshed in place.

use std::io::{self, IsTerminal, Write};

use super::table::Color;

/// Standard output as a terminal.
pub(super) struct Screen {
    color: Color,
    drawn: bool,
}

/// Whether to color standard output: only a terminal, and not against the user's wish (no-color.org).
pub(super) fn color() -> Color {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    if io::stdout().is_terminal() && !unwanted { Color::Always } else { Color::Never }
}

/// Columns and lines of the terminal; `None` when standard output is none or does not tell.
pub(super) fn size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}

impl Screen {
    /// Standard output if it is a terminal.
    pub(super) fn open() -> Option<Self> {
        io::stdout().is_terminal().then(|| Self { color: color(), drawn: false })
    }

    pub(super) const fn color(&self) -> Color {
        self.color
    }

    /// Shows `lines` in place of those of before. What does not fit is cut, and the last line says so.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let text = picture(lines, size().map_or(usize::MAX, |(_, rows)| rows), self.drawn);
        self.drawn = true;
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.drawn {
            // Leaves the last picture with the cursor below it.
            let _ = io::stdout().write_all(b"\x1b[?25h");
        }
    }
}

/// What to write for `lines` on a screen of `rows` rows.
fn picture(lines: &[String], rows: usize, again: bool) -> String {
    // The cursor's own line stays free, else the terminal scrolls.
    let room = rows.saturating_sub(1).max(1);
    let mut text = String::new();
    // Home and overwrite rather than clear: no flicker. The first time the screen is cleared.
    text.push_str(if again { "\x1b[H" } else { "\x1b[?25l\x1b[2J\x1b[H" });
    let fits = lines.len() <= room;
    for line in &lines[..if fits { lines.len() } else { room - 1 }] {
        text.push_str(line);
        text.push_str("\x1b[K\n");
    }
    if !fits {
        text.push_str(&format!("… {} more lines: use --once, or name a service\x1b[K\n", lines.len() - room + 1));
    }
    text.push_str("\x1b[J");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_fit_the_screen() {
        let lines: Vec<_> = (0..5).map(|i| format!("line {i}")).collect();
        let whole = picture(&lines, 6, false);
        assert_eq!(whole.matches('\n').count(), 5);
        assert!(whole.contains("\x1b[2J") && whole.contains("line 4") && whole.ends_with("\x1b[J"));
        let cut = picture(&lines, 5, true);
        assert_eq!(cut.matches('\n').count(), 4);
        assert!(!cut.contains("\x1b[2J") && cut.contains("line 2\x1b[K\n… 2 more lines"), "{cut:?}");
        assert_eq!(picture(&lines, 0, true).matches('\n').count(), 1);
    }
}
