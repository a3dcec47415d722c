//! Tables for terminals: columns as wide as their content, nothing wider than the screen.

use std::borrow::Cow;

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// How a cell looks where there are colors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Style {
    #[default]
    Plain,
    Bold,
    Good,
    Bad,
    Faint,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\x1b[1m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
            Self::Faint => "\x1b[2m",
        }
    }
}

/// Whether escape sequences may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Color {
    Never,
    Always,
}

/// One cell.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), style: Style::Plain }
    }

    pub(super) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

enum Row {
    Cells(Vec<Cell>),
    /// A sentence across all columns.
    Note(Cell),
}

/// A table under construction.
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Row>,
}

const GAP: &str = "  ";

impl Table {
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(Row::Cells(cells));
    }

    /// Adds a sentence.
    pub(super) fn note(&mut self, text: impl Into<String>, style: Style) {
        self.rows.push(Row::Note(Cell::styled(text, style)));
    }

    /// One string for each line, without line ends. With `width` none is longer.
    pub(super) fn lines(&self, color: Color, width: Option<usize>) -> Vec<String> {
        let heads = self.columns.iter().map(|(head, _)| Cell::styled(*head, Style::Faint)).collect();
        let head = Row::Cells(heads);
        let mut widths = vec![0; self.columns.len()];
        for row in std::iter::once(&head).chain(&self.rows) {
            if let Row::Cells(cells) = row {
                for (width, cell) in widths.iter_mut().zip(cells) {
                    *width = (*width).max(clean(&cell.text).chars().count());
                }
            }
        }
        std::iter::once(&head)
            .chain(&self.rows)
            .map(|row| {
                let mut line = Line { text: String::new(), left: width.unwrap_or(usize::MAX), color };
                match row {
                    Row::Note(note) => line.add(note, 0, 0),
                    Row::Cells(cells) => self.cells(&mut line, cells, &widths),
                }
                line.text
            })
            .collect()
    }

    fn cells(&self, line: &mut Line, cells: &[Cell], widths: &[usize]) {
        let last = cells.iter().rposition(|c| !c.text.is_empty());
        // No blanks behind the last text: they only wrap on narrow screens.
        for (i, cell) in cells.iter().enumerate().take(last.map_or(0, |l| l + 1)) {
            if i > 0 {
                line.add(&Cell::new(GAP), 0, 0);
            }
            let room = widths[i] - clean(&cell.text).chars().count();
            match self.columns[i].1 {
                Align::Right => line.add(cell, room, 0),
                Align::Left => line.add(cell, 0, if Some(i) == last { 0 } else { room }),
            }
        }
    }
}

struct Line {
    text: String,
    /// Columns of the screen that are free.
    left: usize,
    color: Color,
}

impl Line {
    fn add(&mut self, cell: &Cell, before: usize, after: usize) {
        self.blanks(before);
        let text = clean(&cell.text);
        let cut: String = text.chars().take(self.left).collect();
        self.left -= cut.chars().count();
        let style = if self.color == Color::Always { cell.style.code() } else { "" };
        if style.is_empty() || cut.is_empty() {
            self.text.push_str(&cut);
        } else {
            self.text.extend([style, &cut, "\x1b[0m"]);
        }
        self.blanks(after);
    }

    fn blanks(&mut self, n: usize) {
        let n = n.min(self.left);
        self.left -= n;
        self.text.extend(std::iter::repeat_n(' ', n));
    }
}

/// Names come from programs and from the wire: what they hold must not move the cursor.
fn clean(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) { Cow::Owned(text.replace(char::is_control, "?")) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[("NAME", Align::Left), ("RATE", Align::Right), ("WHY", Align::Left)]);
        table.row(vec!["web".into(), "1/s".into(), "".into()]);
        table.note("! a note that is longer than the table is wide", Style::Bad);
        table.row(vec![Cell::styled("a\x1b[2Jlong\nname", Style::Bad), "123/s".into(), "because".into()]);
        table
    }

    #[test]
    fn columns_line_up_and_nothing_moves_the_cursor() {
        let expected = [
            "NAME             RATE  WHY",
            "web               1/s",
            "! a note that is longer than the table is wide",
            "a?[2Jlong?name  123/s  because",
        ];
        assert_eq!(table().lines(Color::Never, None), expected);
    }

    #[test]
    fn no_line_is_wider_than_the_screen_colors_or_not() {
        for width in 0..40 {
            for line in table().lines(Color::Never, Some(width)) {
                assert!(line.chars().count() <= width, "{width}: {line:?}");
            }
            let colored = table().lines(Color::Always, Some(width)).join("\n");
            let plain = [Style::Bad.code(), Style::Faint.code(), "\x1b[0m"]
                .iter()
                .fold(colored.clone(), |text, code| text.replace(code, ""));
            assert_eq!(plain, table().lines(Color::Never, Some(width)).join("\n"));
            assert_eq!(colored.matches("\x1b[0m").count() * 2, colored.matches('\x1b').count());
        }
    }
}
