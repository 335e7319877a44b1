//! States as bytes: versioned, checksummed, and safe to read from anyone.
//!
//! Layout: magic, version, checksum of the rest, configuration, one settled lane, open fragments. All numbers are
//! little-endian. A reader never allocates more than the bytes that are left can fill.

use crate::error::{Error, Result};
use crate::hash::checksum;
use crate::hist::LogHistogram;
use crate::lane::{Lane, Shared};
use crate::pairs::{ONE, PairTotals, stored_pairs};
use crate::scalars::PolicyScalars;
use crate::slots::{DIRECT, Slots};
use crate::state::{Config, Fragment, State};
use crate::sum::ExactSum;
use crate::tail::{Tail, TailRow, TailUnit};
use crate::totals::{BUCKETS, ClassTotals, ClusterTotals, PAIRS, SlotBuckets, Totals, Z};
use crate::unit::MAX_DEGREE;

const MAGIC: &[u8; 8] = b"POPEFAST";
const VERSION: u32 = 2;
/// Digits of exact sums lie within this distance of the point: far beyond any log-probability the loader accepts.
const MAX_DIGIT: u32 = 1 << 22;

/// No honest count comes near this; it keeps sums of counts within 64 bits.
const MAX_COUNT: u64 = 1 << 48;

/// Something that can be written and read back.
trait Store: Sized {
    fn write(&self, out: &mut Vec<u8>);
    fn read(input: &mut Input<'_>) -> Result<Self>;
    /// Fewest bytes that a value takes, to bound what a length prefix can make us allocate.
    const MIN_SIZE: usize;
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

fn corrupt(what: &str) -> Error {
    Error::State(format!("not a valid state: {what}"))
}

impl Input<'_> {
    fn take<const K: usize>(&mut self) -> Result<[u8; K]> {
        let (head, rest) = self.0.split_first_chunk::<K>().ok_or_else(|| corrupt("it ends too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn length<T: Store>(&mut self) -> Result<usize> {
        let n = u64::read(self)?;
        if n > (self.0.len() / T::MIN_SIZE) as u64 {
            return Err(corrupt("a length exceeds what is left"));
        }
        Ok(n as usize)
    }
}

macro_rules! store_number {
    ($($ty:ty),*) => {$(
        impl Store for $ty {
            const MIN_SIZE: usize = size_of::<$ty>();
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn read(input: &mut Input<'_>) -> Result<Self> {
                Ok(<$ty>::from_le_bytes(input.take()?))
            }
        }
    )*};
}
store_number!(u8, u32, i32, u64, i64, f64);

impl Store for bool {
    const MIN_SIZE: usize = 1;
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        match u8::read(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(corrupt("a flag is neither 0 nor 1")),
        }
    }
}

impl<T: Store> Store for Vec<T> {
    const MIN_SIZE: usize = 8;
    fn write(&self, out: &mut Vec<u8>) {
        (self.len() as u64).write(out);
        self.iter().for_each(|x| x.write(out));
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        let n = input.length::<T>()?;
        (0..n).map(|_| T::read(input)).collect()
    }
}

impl<T: Store> Store for Option<T> {
    const MIN_SIZE: usize = 1;
    fn write(&self, out: &mut Vec<u8>) {
        self.is_some().write(out);
        self.iter().for_each(|x| x.write(out));
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        if bool::read(input)? { T::read(input).map(Some) } else { Ok(None) }
    }
}

impl<T: Store, const K: usize> Store for [T; K] {
    const MIN_SIZE: usize = K * T::MIN_SIZE;
    fn write(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|x| x.write(out));
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        let items: Vec<T> = (0..K).map(|_| T::read(input)).collect::<Result<_>>()?;
        items.try_into().map_err(|_| corrupt("an array has the wrong length"))
    }
}

impl<A: Store, B: Store> Store for (A, B) {
    const MIN_SIZE: usize = A::MIN_SIZE + B::MIN_SIZE;
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
        self.1.write(out);
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        Ok((A::read(input)?, B::read(input)?))
    }
}

impl<T: Store> Store for Box<T> {
    const MIN_SIZE: usize = T::MIN_SIZE;
    fn write(&self, out: &mut Vec<u8>) {
        (**self).write(out);
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        T::read(input).map(Box::new)
    }
}

impl Store for String {
    const MIN_SIZE: usize = 8;
    fn write(&self, out: &mut Vec<u8>) {
        self.as_bytes().to_vec().write(out);
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        String::from_utf8(Vec::read(input)?).map_err(|_| corrupt("a name is not UTF-8"))
    }
}

/// Implement [`Store`] field by field.
macro_rules! store_struct {
    ($ty:ty { $($field:ident: $field_ty:ty),* $(,)? }) => {
        impl Store for $ty {
            const MIN_SIZE: usize = 0 $(+ <$field_ty as Store>::MIN_SIZE)*;
            fn write(&self, out: &mut Vec<u8>) {
                $(self.$field.write(out);)*
            }
            fn read(input: &mut Input<'_>) -> Result<Self> {
                let mut x = Self::default();
                $(x.$field = <$field_ty as Store>::read(input)?;)*
                Ok(x)
            }
        }
    };
}

store_struct!(Config {
    policies: Vec<String>,
    reward_range: (f64, f64),
    row_units: bool,
    has_cluster: bool,
    has_group: bool,
    has_tokens: bool,
    has_baseline: bool,
    has_embedding: bool,
    clusters_span_log: bool,
    tail_capacity: usize,
});
store_struct!(Fragment {
    key: i64,
    floats: [Vec<f64>; 5],
    per_policy: Vec<[Vec<f64>; 2]>,
    labels: [Vec<i64>; 2],
    embedding: Vec<f64>,
});
store_struct!(TailRow { l: f64, r: f64, m: f64, cluster: i64, group: i64 });
store_struct!(Totals {
    class: [Option<Box<ClassTotals>>; MAX_DEGREE],
    cluster: ClusterTotals,
    group: [SlotBuckets; 2],
    pairs: Option<Box<PairTotals>>,
});
store_struct!(PairTotals { buckets: Vec<[ExactSum; Z]>, gram: [ExactSum; PAIRS], histograms: [LogHistogram; 4] });
store_struct!(PolicyScalars {
    l: [ExactSum; 2],
    wl: ExactSum,
    baseline: [ExactSum; 5],
    wt: ExactSum,
    dr: [ExactSum; 7],
    zero_draws: u64,
    max_a: Option<(i32, f64)>,
});
store_struct!(Shared {
    rows: u64,
    draws: u64,
    units: [[u64; BUCKETS]; MAX_DEGREE],
    units_repeated: u64,
    reward: [ExactSum; 2],
    tokens: ExactSum,
    clusters: Vec<[u64; 2]>,
    groups: Vec<[u64; BUCKETS]>,
    group_rows: Vec<u64>,
    pair_units: Vec<u64>,
});

impl Store for ClusterTotals {
    const MIN_SIZE: usize = 16;
    fn write(&self, out: &mut Vec<u8>) {
        self.mass.write(out);
        self.second.write(out);
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        Ok(ClusterTotals::from_parts(Store::read(input)?, Store::read(input)?))
    }
}

impl Store for usize {
    const MIN_SIZE: usize = 8;
    fn write(&self, out: &mut Vec<u8>) {
        (*self as u64).write(out);
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        usize::try_from(u64::read(input)?).map_err(|_| corrupt("a size is too large"))
    }
}

impl Store for ExactSum {
    const MIN_SIZE: usize = 8;
    fn write(&self, out: &mut Vec<u8>) {
        self.digits().write(out);
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        let digits = Vec::<(i32, i64)>::read(input)?;
        if digits.iter().any(|&(i, digit)| i.unsigned_abs() > MAX_DIGIT || digit.unsigned_abs() > 1 << 31) {
            return Err(corrupt("a sum is out of range"));
        }
        Ok(ExactSum::from_digits(&digits))
    }
}

impl Store for LogHistogram {
    const MIN_SIZE: usize = 8;
    fn write(&self, out: &mut Vec<u8>) {
        self.entries().collect::<Vec<_>>().write(out);
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        let mut histogram = LogHistogram::default();
        for (bin, count) in Vec::<(u32, u64)>::read(input)? {
            if count > MAX_COUNT || !histogram.set(bin, count) {
                return Err(corrupt("a histogram bin is out of range"));
            }
        }
        Ok(histogram)
    }
}

impl Store for Slots {
    const MIN_SIZE: usize = 8;
    fn write(&self, out: &mut Vec<u8>) {
        (DIRECT..self.len()).map(|slot| self.key(slot as u32)).collect::<Vec<i64>>().write(out);
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        let mut slots = Slots::default();
        for (i, key) in Vec::<i64>::read(input)?.into_iter().enumerate() {
            if slots.slot(key) as usize != DIRECT + i {
                return Err(corrupt("a label occurs twice"));
            }
        }
        Ok(slots)
    }
}

impl Store for SlotBuckets {
    const MIN_SIZE: usize = 8;
    fn write(&self, out: &mut Vec<u8>) {
        let mut entries: Vec<_> = self.iter().map(|(slot, bucket, sum)| ((slot, bucket as u8), sum.clone())).collect();
        entries.sort_unstable_by_key(|&(place, _)| place);
        entries.write(out);
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        let mut table = SlotBuckets::default();
        for ((slot, bucket), sum) in Vec::<((u32, u8), ExactSum)>::read(input)? {
            // Dense storage grows with the slot; an honest table has few slots beyond the number of its entries.
            if usize::from(bucket) >= BUCKETS {
                return Err(corrupt("a bucket is out of range"));
            }
            table.at(slot, usize::from(bucket)).merge(&sum);
        }
        Ok(table)
    }
}

impl Store for ClassTotals {
    const MIN_SIZE: usize = 8;
    fn write(&self, out: &mut Vec<u8>) {
        (self.z as u64).write(out);
        self.buckets.write(out);
        self.gram.write(out);
        self.histograms().for_each(|h| h.write(out));
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        let z = u64::read(input)? as usize;
        if !(2..=MAX_DEGREE + 1).contains(&z) {
            return Err(corrupt("an unknown class of units"));
        }
        let mut class = ClassTotals::new(z - 1);
        class.buckets = Vec::read(input)?;
        if class.buckets.len() != BUCKETS {
            return Err(corrupt("a class has the wrong number of buckets"));
        }
        class.gram = Store::read(input)?;
        for histogram in class.histograms_mut() {
            *histogram = LogHistogram::read(input)?;
        }
        Ok(class)
    }
}

impl Store for TailUnit {
    const MIN_SIZE: usize = 32;
    fn write(&self, out: &mut Vec<u8>) {
        self.l_max.write(out);
        self.key.write(out);
        self.rows.to_vec().write(out);
        self.similar.to_vec().write(out);
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        let (l_max, key, rows) = (f64::read(input)?, u64::read(input)?, Vec::<TailRow>::read(input)?);
        let similar = Vec::<i32>::read(input)?;
        let sound = |row: &TailRow| {
            row.l <= l_max && (0.0..=1.0).contains(&row.r) && (1.0..=9e15).contains(&row.m) && row.m.fract() == 0.0
        };
        if rows.is_empty() || !l_max.is_finite() || !rows.iter().all(sound) {
            return Err(corrupt("a row of the tail holds impossible values"));
        }
        if similar.iter().any(|k| !(-ONE..=ONE).contains(k)) {
            return Err(corrupt("a similarity is out of range"));
        }
        // Whether there have to be similarities is for the configuration to say.
        Ok(if similar.is_empty() {
            TailUnit::new(l_max, key, rows)
        } else {
            TailUnit::with_pairs(l_max, key, rows, &similar)
        })
    }
}

impl Store for Tail {
    const MIN_SIZE: usize = 24;
    fn write(&self, out: &mut Vec<u8>) {
        self.capacity().write(out);
        self.dropped().write(out);
        self.units().to_vec().write(out);
    }
    fn read(input: &mut Input<'_>) -> Result<Self> {
        let (capacity, dropped) = (usize::read(input)?, u64::read(input)?);
        Ok(Tail::from_parts(capacity, Vec::read(input)?, dropped))
    }
}

/// Is every label of a lane's tables known to the lane, and every policy there?
fn is_sound(config: &Config, lane: &Lane) -> bool {
    let clusters = |n: usize| n <= lane.clusters.len();
    let groups = |n: usize| n <= lane.groups.len();
    let tables = |t: &Totals| {
        clusters(t.cluster.second.len())
            && t.cluster.mass.iter().all(|(slot, ..)| clusters(slot as usize + 1))
            && t.group.iter().all(|table| table.iter().all(|(slot, ..)| groups(slot as usize + 1)))
            && t.class.iter().zip(1..).all(|(c, degree)| c.as_ref().is_none_or(|c| c.z == degree + 1))
            && t.pairs.as_ref().is_none_or(|pairs| config.has_embedding && pairs.buckets.len() == BUCKETS)
    };
    let pairs = |tail: &Tail| {
        let stored = |unit: &TailUnit| if config.has_embedding { stored_pairs(unit.rows.len()) } else { 0 };
        tail.units().iter().all(|unit| unit.similar.len() == stored(unit))
    };
    let shared = &lane.shared;
    let units = shared.units.iter().chain(&shared.groups).flatten();
    let counts = shared.clusters.iter().flatten().chain(units).chain(&shared.group_rows).chain(&shared.pair_units);
    let whole_log = [&shared.rows, &shared.draws, &shared.units_repeated];
    let zeros = lane.policies.iter().map(|p| &p.scalars.zero_draws);
    counts.chain(whole_log).chain(zeros).all(|&n| n <= MAX_COUNT)
        && lane.policies.iter().all(|p| p.tail.dropped() <= MAX_COUNT)
        && lane.policies.len() == config.policies.len()
        && clusters(lane.shared.clusters.len())
        && groups(lane.shared.groups.len())
        && lane.shared.group_rows.len() == lane.shared.groups.len()
        && [0, BUCKETS].contains(&shared.pair_units.len())
        && lane
            .policies
            .iter()
            .all(|p| tables(&p.totals) && pairs(&p.tail) && p.tail.capacity() == config.tail_capacity)
}

impl State {
    /// The state as bytes. Equal contents give equal bytes only after the same history of open units; compare
    /// snapshots, not bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let (lane, open) = self.parts()?;
        let mut body = Vec::new();
        self.config().write(&mut body);
        self.width().write(&mut body);
        lane.clusters.write(&mut body);
        lane.groups.write(&mut body);
        lane.shared.write(&mut body);
        for policy in &lane.policies {
            policy.totals.write(&mut body);
            policy.scalars.write(&mut body);
            policy.tail.write(&mut body);
        }
        open.into_iter().cloned().collect::<Vec<Fragment>>().write(&mut body);
        let mut out = MAGIC.to_vec();
        VERSION.write(&mut out);
        checksum(&body).write(&mut out);
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// A state from [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut input = Input(bytes);
        if input.take::<8>()? != *MAGIC {
            return Err(corrupt("it does not begin like one"));
        }
        let version = u32::read(&mut input)?;
        if version != VERSION {
            return Err(corrupt(&format!("version {version}, this release reads {VERSION}")));
        }
        if u64::read(&mut input)? != checksum(input.0) {
            return Err(corrupt("the checksum does not match"));
        }
        let config = Config::read(&mut input)?;
        config.check().map_err(|error| Error::State(format!("not a valid state: {error}")))?;
        let width = usize::read(&mut input)?;
        let mut lane = Lane::new(&config);
        lane.clusters = Slots::read(&mut input)?;
        lane.groups = Slots::read(&mut input)?;
        lane.shared = Shared::read(&mut input)?;
        for policy in &mut lane.policies {
            policy.totals = Totals::read(&mut input)?;
            policy.scalars = PolicyScalars::read(&mut input)?;
            policy.tail = Tail::read(&mut input)?;
        }
        let open = Vec::<Fragment>::read(&mut input)?;
        let sound = is_sound(&config, &lane)
            && (config.has_embedding || width == 0)
            && open.iter().all(|f| f.is_sound(&config, width));
        if !input.0.is_empty() || !sound {
            return Err(corrupt("its parts do not fit each other"));
        }
        Ok(State::from_parts(config, width, lane, open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Batch, Floats, Ints, Vectors};
    use crate::par::Uninterrupted;
    use proptest::prelude::*;

    fn state() -> State {
        state_with(true)
    }

    fn state_with(has_embedding: bool) -> State {
        let config = Config {
            policies: vec!["near".into(), "far".into()],
            reward_range: (0.0, 1.0),
            row_units: false,
            has_cluster: true,
            has_group: true,
            has_tokens: false,
            has_baseline: false,
            has_embedding,
            clusters_span_log: true,
            tail_capacity: 4,
        };
        let mut state = State::new(config).unwrap();
        let n = 60usize;
        let column = |f: &dyn Fn(f64) -> f64| (0..n).map(|i| f(i as f64)).collect::<Vec<f64>>();
        let unit: Vec<i64> = (0..n as i64).map(|i| i / 3).collect();
        let cluster: Vec<i64> = (0..n as i64).map(|i| (i * 7) % 5 - 2).collect();
        let group: Vec<i64> = (0..n as i64).map(|i| 1000 + i % 2).collect();
        let (b, near, far) =
            (column(&|_| -9.0), column(&|i| -9.0 + (i * 0.7).sin()), column(&|i| -9.0 + 8.0 * (i * 1.3).sin()));
        let r = column(&|i| (i * 0.3).sin().abs());
        let embedding: Vec<f32> = (0..3 * n).map(|i| (i as f32 * 0.9).sin()).collect();
        let batch = Batch {
            unit: Some(&unit),
            behavior: Floats::F64(&b),
            targets: vec![Floats::F64(&near), Floats::F64(&far)],
            reward: Floats::F64(&r),
            cluster: Some(Ints::I64(&cluster)),
            group: Some(Ints::I64(&group)),
            count: None,
            tokens: None,
            baseline: None,
            baseline_means: vec![],
            embedding: has_embedding.then_some(Vectors { values: Floats::F32(&embedding), width: 3 }),
            first_row: 0,
        };
        state.update(&batch, 2, &mut Uninterrupted).unwrap();
        state
    }

    #[test]
    fn round_trip() {
        for has_embedding in [false, true] {
            survives(&state_with(has_embedding));
        }
    }

    fn survives(state: &State) {
        let bytes = state.to_bytes().unwrap();
        let back = State::from_bytes(&bytes).unwrap();
        assert_eq!(back.rows(), 60);
        assert_eq!(back.to_bytes().unwrap(), bytes);
        let read =
            |s: &State| format!("{:?}", s.snapshot().unwrap().summary("far", &crate::summary::Options::default()));
        assert_eq!(read(&back), read(state));
        assert_eq!(read(state).contains("\"rao\""), state.config().has_embedding);
    }

    #[test]
    fn embeddings_fit_the_rest() {
        type Change<'a> = &'a dyn Fn(&mut Config, &mut usize, &mut Lane, &mut Vec<Fragment>);
        let with = |change: Change<'_>| {
            let state = state();
            let (mut config, mut width) = (state.config().clone(), state.width());
            let (mut lane, open) = state.parts().unwrap();
            let mut open: Vec<Fragment> = open.into_iter().cloned().collect();
            change(&mut config, &mut width, &mut lane, &mut open);
            State::from_bytes(&State::from_parts(config, width, lane, open).to_bytes().unwrap())
        };
        assert!(with(&|_, _, _, _| {}).is_ok());
        let shorter = |unit: &mut TailUnit| unit.similar = unit.similar[1..].into();
        assert!(with(&|_, width, _, _| *width = 4).is_err());
        assert!(with(&|_, width, _, _| *width = usize::MAX).is_err());
        assert!(with(&|config, _, _, _| config.has_embedding = false).is_err());
        assert!(with(&|_, _, _, open| open[0].embedding.truncate(5)).is_err());
        assert!(with(&|_, _, lane, _| lane.policies[1].tail.change(shorter)).is_err());
        assert!(with(&|_, _, lane, _| lane.policies[0].tail.change(|unit| unit.similar[0] = ONE + 1)).is_err());
        assert!(with(&|_, _, lane, _| lane.shared.pair_units.truncate(7)).is_err());
    }

    /// Break the body and mend the checksum: the parser itself must hold.
    fn forge(mut bytes: Vec<u8>) -> Vec<u8> {
        let sum = checksum(&bytes[20..]);
        bytes[12..20].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    #[test]
    fn refuses_strangers() {
        let bytes = state().to_bytes().unwrap();
        assert!(State::from_bytes(b"").is_err());
        assert!(State::from_bytes(b"POPEFAST").is_err());
        assert!(State::from_bytes(&bytes[..bytes.len() - 1]).is_err());
        let mut newer = bytes.clone();
        newer[8] = 99;
        assert!(State::from_bytes(&newer).unwrap_err().to_string().contains("version 99"));
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        assert!(State::from_bytes(&flipped).unwrap_err().to_string().contains("checksum"));
        let mut longer = bytes;
        longer.push(0);
        assert!(State::from_bytes(&forge(longer)).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>()) {
            let mut bytes = state().to_bytes().unwrap();
            for (at, byte) in edits {
                let at = 20 + at.index(bytes.len() - 20);
                bytes[at] = byte;
            }
            if let Ok(state) = State::from_bytes(&forge(bytes.clone())) {
                // Whatever passes can be read without a panic; its numbers are its author's problem.
                if let Ok(snapshot) = state.snapshot() {
                    let _ = snapshot.summary("far", &crate::summary::Options::default());
                }
            }
            bytes.truncate(20 + cut.index(bytes.len() - 20));
            let _ = State::from_bytes(&forge(bytes));
        }
    }
}
