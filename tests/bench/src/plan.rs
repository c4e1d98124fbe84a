//! Planning a fresh release of 1, 10 and 40 services. The best-known planner of this kind needs 1 s and 18 MB for 40.

use crate::allocations::peak;
use crate::figure::Figure;
use coracle::current::{Current, KnownImage};
use coracle::plan::plan;
use coracle::target::{Target, Wanted};
use coracle_runtime::image::{ImageConfig, Reference, digest_of};
use std::fmt::Write;
use std::time::{Duration, Instant};

const ROUNDS: usize = 200;

/// A release as people write them: each service with variables, a port, a volume, a check, two dependencies.
fn release(services: usize) -> anyhow::Result<Target> {
    let mut text = String::from("name: demo\nservices:\n");
    for number in 0..services {
        let depends: Vec<String> = (number.saturating_sub(2)..number)
            .map(|it| format!("s{it}: {{condition: service_healthy}}"))
            .collect();
        let _ = writeln!(
            text,
            "  s{number}: {{image: \"registry.example/app{number}:1\", environment: {{A: b, C: d}}, ports: [\"{}:80\"], volumes: [\"v{number}:/data\"], healthcheck: {{test: \"true\"}}, depends_on: {{{}}}}}",
            8000 + number,
            depends.join(", ")
        );
    }
    text.push_str("volumes:\n");
    (0..services).for_each(|number| {
        let _ = writeln!(text, "  v{number}: {{}}");
    });
    let loaded = coracle_compose::parse_str("release", &text, &coracle_compose::LoadOptions::default())?;
    let wanted = Wanted { project: loaded.project, ..Wanted::default() };
    Ok(Target { projects: [("demo".to_owned(), wanted)].into(), ..Target::default() })
}

/// Everything that the planner resolves: the images are there.
fn current(services: usize) -> anyhow::Result<Current> {
    let mut current = Current::default();
    for number in 0..services {
        let reference: Reference = format!("registry.example/app{number}:1").parse()?;
        let config = ImageConfig { cmd: vec!["/run".to_owned()], ..ImageConfig::default() };
        let image = KnownImage { digest: digest_of(reference.to_string().as_bytes()), config };
        current.images.insert(reference.to_string(), image);
    }
    Ok(current)
}

pub fn run() -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (services, time) in [(1, "plan_1_ms"), (10, "plan_10_ms"), (40, "plan_40_ms")] {
        let (target, current) = (release(services)?, current(services)?);
        let mut times = Vec::new();
        let mut memory = Vec::new();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            let (planned, bytes) = peak(|| plan(&current, &target, Duration::from_secs(1)));
            times.push(begin.elapsed().as_secs_f64() * 1000.0);
            memory.push(bytes as f64 / 1024.0 / 1024.0);
            anyhow::ensure!(planned.steps.len() > services, "the plan has {} steps", planned.steps.len());
        }
        figures.push(Figure::of(time, "ms", &times));
        if services == 40 {
            figures.push(Figure::of("plan_40_mib", "MiB", &memory));
        }
    }
    Ok(figures)
}
