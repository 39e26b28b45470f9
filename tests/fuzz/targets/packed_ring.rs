//! libFuzzer's way into [`shunt_fuzz::ring::run_packed`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shunt_fuzz::ring::run_packed(data));
