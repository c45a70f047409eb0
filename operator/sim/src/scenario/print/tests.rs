//! What is printed is read as the same scenario.

use super::super::parse;
use super::super::parse::tests::{EVERYTHING, EXAMPLE};

#[test]
fn a_printed_scenario_is_read_as_the_same() {
    for text in [EXAMPLE, EVERYTHING] {
        let read = parse(text, "t.yaml", None).unwrap();
        let printed = super::scenario(&read[0]);
        let again = parse(&printed, "t.yaml", None).unwrap_or_else(|e| panic!("{printed}\n{e}"));
        assert_eq!(again[0], read[0], "{printed}");
        assert_eq!(super::scenario(&again[0]), printed);
    }
}

#[test]
fn strings_that_look_like_something_else_are_quoted() {
    let read = parse("name: \"on\"\nvms: [{name: \"101\"}]", "t.yaml", None).unwrap();
    let printed = super::scenario(&read[0]);
    assert!(printed.contains("name: \"on\""), "{printed}");
    assert!(printed.contains("{name: \"101\"}"), "{printed}");
}

#[test]
fn every_scenario_of_the_project_survives_printing() {
    for text in super::super::parse::tests::all_texts() {
        for read in parse(&text, "t.yaml", None).unwrap() {
            let printed = super::scenario(&read);
            let again =
                parse(&printed, "t.yaml", None).unwrap_or_else(|e| panic!("{printed}\n{e}"));
            assert_eq!(again[0], read, "{printed}");
        }
    }
}
