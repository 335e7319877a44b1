//! Results as a tree of named values: what crosses the border to Python.

/// A value in a result.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// Not available.
    None,
    /// A flag.
    Bool(bool),
    /// A count.
    Count(u64),
    /// A key.
    Key(i64),
    /// A number; infinite and NaN are allowed here and dealt with by the reader.
    Number(f64),
    /// A text.
    Text(String),
    /// A sequence.
    List(Vec<Field>),
    /// Named values in order.
    Record(Vec<(String, Field)>),
}

macro_rules! from {
    ($($ty:ty => $variant:ident($x:ident) $value:expr;)*) => {
        $(impl From<$ty> for Field {
            fn from($x: $ty) -> Self {
                Field::$variant($value)
            }
        })*
    };
}

from! {
    bool => Bool(x) x;
    u64 => Count(x) x;
    usize => Count(x) x as u64;
    i64 => Key(x) x;
    f64 => Number(x) x;
    &str => Text(x) x.to_owned();
    String => Text(x) x;
}

impl<T: Into<Field>> From<Option<T>> for Field {
    fn from(x: Option<T>) -> Self {
        x.map_or(Field::None, Into::into)
    }
}

impl<T: Into<Field>> From<Vec<T>> for Field {
    fn from(x: Vec<T>) -> Self {
        Field::List(x.into_iter().map(Into::into).collect())
    }
}

/// Define a result struct that turns into a [`Field::Record`] of its fields.
macro_rules! record {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        $vis struct $name { $($(#[$field_meta])* pub $field: $ty,)* }
        impl From<$name> for crate::field::Field {
            fn from(x: $name) -> Self {
                crate::field::Field::Record(vec![$((stringify!($field).to_owned(), x.$field.into()),)*])
            }
        }
    };
}
pub(crate) use record;
