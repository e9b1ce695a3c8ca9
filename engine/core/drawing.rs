//! What charts and pages share: colours, axes, text as HTML.

/// Colours and classes of pages and charts.
pub const STYLE: &str = include_str!("drawing.css");

/// Colours of the style sheet, taken in turn.
const COLOURS: usize = 8;

/// The colour of the variant in that place.
pub fn colour(place: usize) -> String {
    format!("var(--c{})", place % COLOURS)
}

/// A logarithmic axis over whole decades.
pub struct Axis {
    /// Exponents of its ends.
    from: i32,
    to: i32,
    /// Places of its ends.
    start: f64,
    end: f64,
}

impl Axis {
    /// From the decade of the least value to that of the largest.
    pub fn new(values: impl Iterator<Item = f64> + Clone, start: f64, end: f64) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let largest = values.fold(0.0, f64::max);
        let (from, to) = (least.log10().floor() as i32, largest.log10().ceil() as i32);
        Self { from, to: to.max(from + 1), start, end }
    }

    /// Where a value is, between the places of the ends.
    pub fn place(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        self.start + share * (self.end - self.start)
    }

    /// The places of whole decades, with their exponents.
    pub fn decades(&self) -> impl Iterator<Item = (f64, i32)> + '_ {
        (self.from..=self.to).map(|exponent| (self.place(10f64.powi(exponent)), exponent))
    }

    /// The value of its lower end.
    pub fn least(&self) -> f64 {
        10f64.powi(self.from)
    }

    /// The value of its upper end.
    pub fn largest(&self) -> f64 {
        10f64.powi(self.to)
    }
}

/// `0.01`, `100`, `1e5`
pub fn power_of_ten(exponent: i32) -> String {
    match exponent {
        0..=3 => 10u32.pow(exponent as u32).to_string(),
        -3..0 => format!("{:.*}", exponent.unsigned_abs() as usize, 10f64.powi(exponent)),
        _ => format!("1e{exponent}"),
    }
}

/// Text as HTML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_cover_their_values_in_whole_decades() {
        let axis = Axis::new([0.3, 250.0].into_iter(), 0.0, 400.0);
        assert_eq!((axis.from, axis.to), (-1, 3));
        assert_eq!((axis.place(0.1), axis.place(1000.0), axis.place(10.0)), (0.0, 400.0, 200.0));
        let one = Axis::new([10.0].into_iter(), 0.0, 1.0);
        assert!(one.to > one.from, "a single value has a decade");
        assert_eq!([-4, -2, 0, 3, 4].map(power_of_ten), ["1e-4", "0.01", "1", "1000", "1e4"]);
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
