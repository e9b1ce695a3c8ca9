//! Floats as Python writes them.

/// The shortest digits that give the float again, with an exponent below 1e-4 and from 1e16 on.
pub fn repr(float: f64) -> String {
    if float.is_nan() {
        return "nan".into();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{float}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    format!("{digits}e{}", signed_exponent(exponent))
}

/// An exponent with its sign and at least two digits.
pub fn signed_exponent(exponent: i32) -> String {
    format!("{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs())
}

/// C's `%e`.
pub fn scientific(float: f64, precision: usize) -> String {
    if !float.is_finite() {
        return repr(float);
    }
    let text = format!("{float:.precision$e}");
    match text.split_once('e') {
        Some((digits, exponent)) => format!("{digits}e{}", signed_exponent(exponent.parse().unwrap_or(0))),
        None => text,
    }
}

/// C's `%f`.
pub fn fixed(float: f64, precision: usize) -> String {
    if float.is_finite() { format!("{float:.precision$}") } else { repr(float) }
}

/// C's `%g`; `keep_zeros` is its `#`.
pub fn general(float: f64, precision: usize, keep_zeros: bool) -> String {
    if !float.is_finite() {
        return repr(float);
    }
    let precision = precision.max(1);
    let rounded = format!("{float:.0$e}", precision - 1);
    let exponent: i32 = rounded.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    let text = if exponent < -4 || exponent >= precision as i32 {
        scientific(float, precision - 1)
    } else {
        fixed(float, (precision as i32 - 1 - exponent).max(0) as usize)
    };
    if keep_zeros || !text.contains('.') {
        return text;
    }
    match text.split_once('e') {
        Some((digits, exponent)) => {
            format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        None => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}
