//! Tables of text.

use std::fmt;

/// Columns as wide as their widest cell: the first three and those whose title begins with `<` to the left, others to the
/// right.
pub(super) struct Table {
    left: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these titles. A title begins with `<` where its column is aligned to the left.
    pub(super) fn new(titles: &[&str]) -> Self {
        let left = titles.iter().enumerate().map(|(i, title)| i < 3 || title.starts_with('<')).collect();
        let titles = titles.iter().map(|title| title.trim_start_matches('<').to_owned()).collect();
        Self { left, rows: vec![titles] }
    }

    /// Adds a row of as many cells.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |i: usize| {
            self.rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.left.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (i, cell) in row.iter().enumerate() {
                let space = if i == 0 { "" } else { "  " };
                line += &match self.left[i] {
                    true => format!("{space}{cell:<width$}", width = widths[i]),
                    false => format!("{space}{cell:>width$}", width = widths[i]),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["op", "v", "d", "count", "<where"]);
        table.row(["add", "plain", "f32", "7", "x"].map(str::to_owned));
        assert_eq!(table.to_string(), "op   v      d    count  where\nadd  plain  f32      7  x\n");
    }
}
