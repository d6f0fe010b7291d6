//! EMQX's dialect: what its rules mean, on the machine of [`crate::program`].
//!
//! It differs from the default dialect in its values (a missing one is not NULL), in its comparisons and arithmetic
//! (`values`), in what names mean and in the order of evaluation (`plan`), and in that an error is the rule's failure for this
//! message (`run`). All of it is decided when a rule is planned: the program has other operations, and the machine never asks.
//!
//! # Order
//! The SELECT list from left to right, then WHERE over the message's columns and what the list made (that wins), then, with
//! FOREACH, for each element INCASE and DO. So an error in the list fails the message even where WHERE would have rejected it, as there.
//!
//! # Names
//! A field of the list finds what stands to its left first, and the message where that has nothing; WHERE, INCASE and DO find what the
//! list made, even where it has less than the message: `SELECT payload.s ... WHERE payload.other = 1` is never true.
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod values;
pub(crate) mod why;
