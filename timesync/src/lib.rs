//! NTP time for devices that may have no clock of their own.
//!
//! This crate will own the client: exchanges, source selection, the first step, the discipline of frequency, and
//! the floor under which the clock is never set (build date, saved clock, RTC).
//!
//! It holds no code yet.
//!
//! **Invariant.** The deciding part never reads a clock and never opens a socket: time and packets are arguments.
#![forbid(unsafe_code)]
