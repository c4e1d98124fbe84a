//! Boards, their GPIO lines and device nodes, and who may use them.
//!
//! This crate will own board identification, the tables of boards, the roles that a service may ask for, and the
//! policy that turns a role into lines and nodes of the board at hand.
//!
//! It holds no code yet.
//!
//! **Invariant.** A device that no rule grants is refused.
#![forbid(unsafe_code)]
