// SPDX-License-Identifier: Apache-2.0
//! Tests of plans: what has a key, and what changes it.

use super::*;

const SIZES: Sizes = Sizes { vcpus: 1, memory_mb: 1024, disk_size_mb: 5120 };

fn base() -> String {
    base_key(("platform", "minimal"), SIZES)
}

/// Plans a recipe whose context has one file with this digest.
fn planned_with(source: &str, digest: &str) -> Result<Plan, Vec<Problem>> {
    let recipe = wrenn_recipe::parse(source.as_bytes()).expect("a recipe");
    plan(&recipe, base(), Context::default(), |copied| match copied.sources.as_slice() {
        [wrenn_recipe::Source::Context(path)] if path == "missing" => Err("it is missing".to_owned()),
        _ => Ok(BTreeMap::from([("a".to_owned(), digest.to_owned())])),
    })
}

fn planned(source: &str) -> Plan {
    planned_with(source, "1").expect("a plan")
}

/// Keys of the layers.
fn keys(plan: &Plan) -> Vec<String> {
    plan.steps.iter().filter_map(Planned::layer).map(|link| link.key.clone()).collect()
}

/// What each step does, as a letter.
fn works(plan: &Plan) -> String {
    let letter = |step: &Planned| match step.work {
        Work::Nothing => '-',
        Work::Layer(_) => 'L',
        Work::Process => 'P',
    };
    plan.steps.iter().map(letter).collect()
}

#[test]
fn steps_that_change_the_disk_have_layers() {
    let plan = planned(
        "FROM minimal\nARG V=1\nENV A=1\nWORKDIR /app\nUSER root\nUSER 1000\nUSER app\nCOPY a .\nRUN make\n\
         CMD serve\nHEALTHCHECK CMD check",
    );
    assert_eq!(works(&plan), "---L--LLLPP");
    assert!(plan.has_start);
    assert_eq!(plan.steps[3].place, Place { number: 4, line: 4 });
    assert_eq!(plan.steps[3].place.to_string(), "step 4 (line 4)");
    let parent = |step: &Planned| match &step.work {
        Work::Layer(link) => Some(link.parent.clone()),
        Work::Nothing | Work::Process => None,
    };
    let parents: Vec<String> = plan.steps.iter().filter_map(parent).collect();
    assert_eq!(parents[0], base());
    assert_eq!(parents[1..4], keys(&plan)[..3]);
}

#[test]
fn a_check_without_a_process_does_nothing() {
    let plan = planned("RUN make\nHEALTHCHECK CMD check");
    assert_eq!((works(&plan).as_str(), plan.has_start), ("L-", false));
}

#[test]
fn variables_count_where_they_reach_a_step() {
    let first = planned("RUN a\nENV A=1\nRUN b\nCOPY a /x");
    let other = planned("RUN a\nENV A=2\nRUN b\nCOPY a /x");
    let (first, other) = (keys(&first), keys(&other));
    assert_eq!(first[0], other[0], "what comes before is the same");
    assert!(first[1] != other[1] && first[2] != other[2], "all that follows is another one");
    // An ENV after the last step reaches none.
    assert_eq!(keys(&planned("RUN a\nENV A=1")), keys(&planned("RUN a")));
    assert_eq!(planned("RUN a\nENV A=1").key, planned("RUN a").key);
    // What a variable is expanded to counts, and not how it is written.
    assert_eq!(keys(&planned("ARG D=/x\nWORKDIR $D")), keys(&planned("WORKDIR /x")));
    assert_eq!(keys(&planned("ENV D=/x\nCOPY a $D")), keys(&planned("COPY a /x")));
}

#[test]
fn user_directory_and_files_count() {
    let one = |source: &str| keys(&planned(source)).pop().expect("a layer");
    assert_ne!(one("USER 1\nRUN a"), one("USER 2\nRUN a"));
    assert_ne!(one("WORKDIR /a\nRUN a"), one("WORKDIR /b\nRUN a"));
    assert_ne!(one("COPY a /x"), one("COPY a /x/"));
    assert_ne!(one("COPY --chown=1 a /x"), one("COPY a /x"));
    assert_ne!(one("COPY --chmod=600 a /x"), one("COPY a /x"));
    assert_eq!(one("COPY a /x"), one("COPY b /x"), "the source's name does not count");
    assert_eq!(one("RUN --timeout=5s a"), one("RUN a"));
    let copied = |digest| keys(&planned_with("COPY a /x", digest).expect("a plan"));
    assert_ne!(copied("1"), copied("2"));
}

#[test]
fn base_and_sizes_count() {
    let key = |kind, identity, sizes| base_key((kind, identity), sizes);
    let first = key("platform", "minimal", SIZES);
    assert_eq!(first, base());
    for other in [
        key("snapshot", "minimal", SIZES),
        key("platform", "python", SIZES),
        key("platform", "minimal", Sizes { vcpus: 2, ..SIZES }),
        key("platform", "minimal", Sizes { memory_mb: 512, ..SIZES }),
        key("platform", "minimal", Sizes { disk_size_mb: 512, ..SIZES }),
    ] {
        assert_ne!(other, first);
    }
}

#[test]
fn a_process_counts_for_what_follows_and_for_the_template() {
    let with = planned("START a\nRUN b");
    assert_eq!(works(&with), "PL");
    assert_ne!(keys(&with), keys(&planned("START c\nRUN b")));
    assert_ne!(keys(&with), keys(&planned("RUN b")));
    let template = |source: &str| planned(source).key;
    assert_ne!(template("RUN b\nSTART a"), template("RUN b"));
    assert_ne!(template("RUN b\nSTART a"), template("RUN b\nENV A=1\nSTART a"));
    assert_ne!(template("RUN b\nSTART a\nHEALTHCHECK CMD x"), template("RUN b\nSTART a"));
    assert_eq!(keys(&planned("RUN b\nSTART a")), keys(&planned("RUN b")));
}

#[test]
fn all_that_stands_against_a_recipe_is_told_at_once() {
    let problems =
        planned_with("START a\nRUN --secret=s a\nCOPY missing /x\nWORKDIR $NONE\nCOPY missing /y", "1");
    let problems = problems.expect_err("refused");
    let told: Vec<_> = problems.iter().map(|problem| (problem.code, &problem.message[..7])).collect();
    let invalid = ErrorCode::InvalidRequest;
    assert_eq!(
        told,
        [(invalid, "line 2,"), (invalid, "line 3,"), (invalid, "line 4,"), (invalid, "line 5,")]
    );
    assert!(problems[0].message.contains("write the START behind it"), "{}", problems[0].message);
    assert_eq!(problems[1].message, "line 3, column 1, COPY: it is missing");
    let long = format!("RUN {}", "x".repeat(ARGUMENT_MAX + 1));
    // A line has a limit of its own, a heredoc has not.
    let long = planned_with(&format!("RUN <<EOF\n{}\nEOF", &long[4..]), "1").expect_err("refused");
    assert!(long[0].message.contains("begins with #!"), "{}", long[0].message);
}

#[test]
fn names_of_files_are_kept_up_to_a_bound_for_all_steps() {
    let recipe = wrenn_recipe::parse(b"COPY a /x/\nCOPY b /y/\nCOPY c /z/").expect("a recipe");
    // As many as a step may keep, with names that are so long that two such steps have more than is kept of all.
    let many: BTreeMap<String, String> =
        (0..4_000).map(|number| (format!("{number:0>4000}"), "1".repeat(64))).collect();
    let plan = plan(&recipe, base(), Context::default(), |_| Ok(many.clone())).expect("a plan");
    let links: Vec<&Link> = plan.steps.iter().filter_map(Planned::layer).collect();
    let kept: Vec<usize> = links.iter().map(|link| link.inputs.files.len()).collect();
    assert_eq!(kept, [4_000, 0, 0]);
    // What is not kept counts all the same.
    assert!(links.windows(2).all(|two| two[0].inputs.files_hash == two[1].inputs.files_hash));
}

#[test]
fn secrets_count_by_their_names_and_places() {
    let plan = planned("RUN --secret=a b\nRUN c\nSTART d");
    assert_eq!(plan.steps.iter().map(|step| step.has_secrets).collect::<Vec<_>>(), [true, false, false]);
    let one = |source: &str| keys(&planned(source)).pop().expect("a layer");
    assert_ne!(one("RUN --secret=a b"), one("RUN b"));
    assert_ne!(one("RUN --secret=a b"), one("RUN --secret=c b"));
    assert_ne!(one("RUN --secret=a b"), one("RUN --secret=a,target=/x b"));
    assert_eq!(one("RUN --secret=a,c b"), one("RUN --secret=c --secret=a b"));
}

#[test]
fn a_group_has_a_layer_if_it_may_have_to_be_made() {
    for (user, work) in [
        ("root", "-"),
        ("1000:1000", "-"),
        ("root:root", "-"),
        ("0:adm", "L"),
        ("app", "L"),
        ("app:7", "L"),
        ("app:web", "L"),
    ] {
        assert_eq!(works(&planned(&format!("USER {user}"))), work, "{user}");
    }
    assert_ne!(keys(&planned("USER app:web\nRUN a")), keys(&planned("USER app\nRUN a")));
}

#[test]
fn what_is_shown_of_a_step_is_cut() {
    let plan = planned(&format!("RUN {}", "ä".repeat(1000)));
    assert_eq!(plan.steps[0].text.chars().count(), SHOWN);
    assert_eq!(planned("RUN a").steps[0].text, "RUN a");
}

#[test]
fn what_only_the_base_can_tell_does_not_stand_against_a_sketch() {
    let sketched = |source: &str| {
        let recipe = wrenn_recipe::parse(source.as_bytes()).expect("a recipe");
        sketch(&recipe, |copied| match copied.sources.as_slice() {
            [wrenn_recipe::Source::Context(path)] if path == "there" => Ok(BTreeMap::new()),
            _ => Err("it is missing".to_owned()),
        })
    };
    let plan = sketched("FROM a:1\nWORKDIR $HOME_OF_IT\nCOPY x$FILE /x\nCOPY there /x\nRUN b");
    let plan = plan.expect("a sketch");
    assert_eq!(plan.steps.len(), 5);
    for (source, told) in [
        ("FROM a:1\nCOPY missing /x", "line 2, column 1, COPY: it is missing"),
        ("FROM a:1\nSTART a\nRUN --secret=s b", "the START behind it"),
    ] {
        let problems = sketched(source).expect_err(source);
        assert!(problems.iter().any(|problem| problem.message.contains(told)), "{problems:?}");
    }
}
