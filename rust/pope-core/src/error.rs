//! What can be wrong with the input, in terms of the columns a user knows.

use core::fmt;

/// An error of the core. Rows count within the call that raised it; the caller knows where its batch began.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// A value that its column cannot hold.
    Value {
        /// The column's role, for example `behavior_logprob` or `target_logprob/NAME`.
        column: String,
        /// Row within the batch.
        row: usize,
        /// What the value is and why it is refused.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A column of the wrong length.
    Length {
        /// The column's role.
        column: String,
        /// What is wrong.
        problem: String,
    },
    /// Offsets that do not fit their values.
    Shape(String),
    /// Arguments or states that do not go together.
    Config(String),
    /// The log says nothing about a policy.
    Overlap(String),
    /// Bytes that are not a state, or states that do not merge.
    State(String),
    /// The caller asked to stop.
    Interrupted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Value { column, row, problem, remedy } => {
                write!(f, "column '{column}', row {row}: {problem}. Remedy: {remedy}")
            }
            Error::Length { column, problem } => write!(f, "column '{column}': {problem}"),
            Error::Shape(message) | Error::Config(message) | Error::Overlap(message) | Error::State(message) => {
                f.write_str(message)
            }
            Error::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {}

/// The result of a fallible core function.
pub type Result<T> = core::result::Result<T, Error>;
