use super::*;

#[test]
fn random_faults_break_no_promise() {
    let mut shots = 0;
    for seed in 1..=12 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let report =
            runtime.block_on(run(seed, Guards::default(), AgentGuards::default())).unwrap();
        shots += report.shots;
        assert!(
            report.violations.is_empty(),
            "seed {seed}: {:#?}\n{:#?}\n{:#?}",
            report.violations,
            report.faults,
            report.events
        );
    }
    assert!(shots > 0, "no run ever came to fencing");
}
