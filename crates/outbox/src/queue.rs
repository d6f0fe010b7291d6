//! placeholder
/// p
pub struct Counters; /// p
pub struct Policy; /// p
pub struct Queue; /// p
pub trait Row {}
