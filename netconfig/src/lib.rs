//! Declared connections, as NetworkManager profiles.
//!
//! This crate will own the translation of a declared network configuration into NetworkManager profiles,
//! and the transaction that applies one: under a NetworkManager checkpoint, verified, and rolled back by
//! NetworkManager itself when we die meanwhile.
//!
//! It holds no code yet.
//!
//! **Invariant.** It never changes an interface by any other way than NetworkManager, and never leaves a change
//! in force that was not verified.
#![forbid(unsafe_code)]
