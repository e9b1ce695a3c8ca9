//! The program: exit code and error print.
fn main() {}
