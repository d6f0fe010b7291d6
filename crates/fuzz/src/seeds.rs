//! Inputs without a fuzzer: drawn and mutated by a seed, so that one number is enough to have one again.

/// A generator of 64-bit numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Seeded.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `count`, which is not 0.
    pub fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.number() % count as u64).expect("below a usize")
    }

    /// One of two, with a chance of 1 in `count`.
    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// The longest input that is made here.
const LONGEST: usize = 1_500;

/// The input of a seed: random bytes, or one of `corpus` changed in up to eight places, or two of them joined.
#[must_use]
pub fn input(seed: u64, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut random = Random::new(seed);
    if corpus.is_empty() || random.one_in(3) {
        let len = random.below(LONGEST);
        return (0..len).map(|_| random.number() as u8).collect();
    }
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..random.below(9) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 => bytes.insert(at, random.number() as u8),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 if at < bytes.len() => bytes[at] = random.number() as u8,
            4 => {
                // A piece again, elsewhere.
                let from = random.below(bytes.len() + 1);
                let end = (from + random.below(32)).min(bytes.len());
                let piece = bytes[from..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

/// Leaves out of a failing input what it fails without: pieces from half of it down to a byte, until nothing more can go.
pub fn shrink(input: &[u8], fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if !fails(&bytes) {
        return bytes;
    }
    loop {
        let before = bytes.len();
        let mut size = bytes.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < bytes.len() {
                let mut less = bytes.clone();
                less.drain(at..(at + size).min(bytes.len()));
                if fails(&less) {
                    bytes = less;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        if bytes.len() == before {
            return bytes;
        }
    }
}
