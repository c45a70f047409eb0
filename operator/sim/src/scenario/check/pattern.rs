//! Whether hosts came in the order that `ran` and `tried` say.

use super::super::ast::{Name, RanPattern};

/// Whether `hosts` is exactly `pattern`; [`RanPattern::Anything`] is any number of any hosts.
pub(super) fn fits(hosts: &[Name], pattern: &[RanPattern]) -> bool {
    // reach[i]: the pattern so far can have used up the first i hosts.
    let mut reach = vec![false; hosts.len() + 1];
    reach[0] = true;
    for element in pattern {
        let mut next = vec![false; hosts.len() + 1];
        match element {
            RanPattern::OneOf(choices) => {
                for (i, host) in hosts.iter().enumerate() {
                    next[i + 1] = reach[i] && choices.contains(host);
                }
            }
            RanPattern::Anything => {
                let mut any = false;
                for (i, slot) in next.iter_mut().enumerate() {
                    any = any || reach[i];
                    *slot = any;
                }
            }
        }
        reach = next;
    }
    reach.last().copied().unwrap_or(false)
}
