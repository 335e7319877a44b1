//! Data for the tests of this folder.

use super::Crew;
use super::gram::Embeddings;
use super::matrix::square;
use super::points::Points;
use crate::hash::mix;
use crate::par::Uninterrupted;

/// Numbers in [0, 1), always the same.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f64 {
        self.0 += 1;
        (mix(self.0) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// `n` rows of which `distinct` are different, the others being copies of them.
pub fn crowd(n: usize, dims: usize, distinct: usize) -> Vec<f32> {
    let mut random = Random((n * dims + distinct) as u64);
    let pool: Vec<f32> = (0..distinct * dims).map(|_| (random.next() * 2.0 - 0.8) as f32).collect();
    (0..n).flat_map(|i| pool[i % distinct * dims..][..dims].to_vec()).collect()
}

/// The points of one prompt and their matrix.
pub fn points_of(embeddings: Embeddings<'_>) -> (Points, Vec<f64>) {
    let (mut points, mut matrix) = (Points::default(), Vec::new());
    points.load(embeddings, 0).unwrap();
    let mut crew = Crew { threads: 1, interrupt: &mut Uninterrupted };
    square(&points, embeddings, &mut crew, &mut Vec::new(), &mut matrix).unwrap();
    (points, matrix)
}
