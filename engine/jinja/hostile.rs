//! Templates and inputs made to take all time, memory or stack: each ends with an error, on a thread with a small stack.

use crate::{Error, ErrorKind, Limits, Result, Template};
use std::time::{Duration, Instant};

/// Half of what the threads have that render.
const STACK: usize = 1 << 20;

fn render_within(time: Duration, source: String, variables: String) -> Result<String> {
    let limits = Limits { time, ..Limits::default() };
    let run = move || Template::compile(&source, limits).and_then(|template| template.render(&variables));
    std::thread::Builder::new().stack_size(STACK).spawn(run).unwrap().join().unwrap()
}

/// With time for a busy machine.
fn render_with(source: String, variables: String) -> Result<String> {
    render_within(Duration::from_secs(300), source, variables)
}

fn render(source: impl Into<String>) -> Result<String> {
    render_with(source.into(), r#"{"text": "aaaa", "list": [1, 2, 3]}"#.into())
}

/// Asserts that it ends at a bound, and soon.
fn assert_bounded(source: &str) {
    let start = Instant::now();
    let variables = r#"{"text": "aaaa", "list": [1, 2, 3]}"#.to_owned();
    let rendered = render_within(Duration::from_millis(300), source.to_owned(), variables);
    let error = rendered.expect_err(source);
    assert_eq!(error.kind, ErrorKind::Limit, "{source:.200}: {error}");
    assert!(start.elapsed() < Duration::from_secs(20), "{source:.200}: {:?}", start.elapsed());
}

#[test]
fn a_source_may_nest_and_be_long_only_so_far() {
    for (open, inner, close) in [
        ("-", "1", ""),
        ("+", "1", ""),
        ("not ", "1", ""),
        ("(", "1", ")"),
        ("[", "1", "]"),
        ("{1: ", "1", "}"),
        ("f(", "1", ")"),
        ("text[", "1", "]"),
        ("text|replace(", "1", ")"),
        ("1 if 1 else ", "1", ""),
        ("(1,", "1", ")"),
        ("text is eq(", "1", ")"),
    ] {
        let nested = |times: usize| format!("{{{{ {}{inner}{} }}}}", open.repeat(times), close.repeat(times));
        assert_bounded(&nested(10_000));
        let shallow = render(nested(20));
        assert!(!matches!(shallow, Err(Error { kind: ErrorKind::Limit, .. })), "{open}: {shallow:?}");
    }
    for (open, close) in [
        ("{% if 1 %}", "{% endif %}"),
        ("{% for x in list %}", "{% endfor %}"),
        ("{% with %}", "{% endwith %}"),
        ("{% generation %}", "{% endgeneration %}"),
        ("{% macro m() %}", "{% endmacro %}"),
        ("{% set x %}", "{% endset %}"),
        ("{% filter upper %}", "{% endfilter %}"),
        ("{% call m() %}", "{% endcall %}"),
        ("{% block b %}", "{% endblock %}"),
    ] {
        assert_bounded(&(open.repeat(5_000) + &close.repeat(5_000)));
    }
    assert_bounded(&format!("{{% set {}x{} = 1 %}}", "(".repeat(10_000), ")".repeat(10_000)));
    assert_bounded(&"x".repeat(1 << 20));
}

#[test]
fn what_stands_in_a_row_may_be_long() {
    for (begin, more) in [
        ("1", "+1"),
        ("'a'", "~1"),
        ("1", "*1"),
        ("1", " and 1"),
        ("0", " or 0"),
        ("1", " < 2"),
        ("text", "|upper"),
        ("text", ".strip()"),
        ("2", "**1"),
        ("text", "[0]"),
        ("text", "[:]"),
        ("1", " is eq(1)"),
        ("1", " in [1]"),
    ] {
        let result = render(format!("{{{{ {begin}{} }}}}", more.repeat(5_000)));
        let is_fine = result.as_ref().map_or_else(|error| error.kind == ErrorKind::Failed, |_| true);
        assert!(is_fine, "{more}: {result:?}");
    }
    assert_eq!(
        render("{% if 0 %}".to_owned() + &"{% elif 0 %}".repeat(10_000) + "{% endif %}x").unwrap(),
        "x"
    );
    assert_eq!(render("{{ 1 }}".repeat(30_000)).unwrap().len(), 30_000);
}

#[test]
fn a_value_may_nest_and_grow_only_so_far() {
    let looped = |step: &str| {
        format!(
            "{{% set ns = namespace(s='a' * 1000, x=[1], d={{}}) %}}{{% for i in range(100000) %}}{{% set {step} %}}\
             {{% endfor %}}{{{{ ns.x }}}}{{{{ ns.s }}}}{{{{ ns.d }}}}"
        )
    };
    for step in [
        "ns.x = [ns.x]",
        "ns.x = (ns.x,)",
        "ns.x = {1: ns.x}",
        "ns.x = [ns.x, ns.x]",
        "ns.x = {1: ns.x, 2: ns.x}",
        "ns.x = ns.x + ns.x",
        "ns.x = ns.x * 2",
        "ns.s = ns.s + ns.s",
        "ns.s = ns.s ~ ns.s",
        "ns.s = ns.s * 2",
        "ns.s = ns.s | replace('a', 'aa')",
        "ns.s = ns.s.replace('', 'a')",
        "ns.s = [ns.s, ns.s] | join",
        "ns.s = ns.s.join(['a', 'b', ns.s])",
        "ns.s = '%s%s' % (ns.s, ns.s)",
        "ns.s = '{0}{0}'.format(ns.s)",
        "ns.s = ns.s | indent(ns.s | length, true)",
        "ns.s = ns.s | tojson | tojson",
        "ns.s = ns.s.ljust(ns.s | length * 2)",
        "ns.s = ns.s ~ ([ns.s] * 3)",
        "ns.x = [ns.s | list, ns.x]",
        "ns.x = [ns.x, ns.s.split('a')]",
        "ns.x = ns.x | batch(10, ns.x) | list",
        "ns.d = dict(ns.d, **{i | string * 100: [ns.s ~ i]})",
        "ns.x = [ns.x] | map('list') | list",
        "ns.x = ns.x + [ns.s ~ i]",
        "ns.x = ns.x + [loop]",
    ] {
        assert_bounded(&looped(step));
    }
    for source in [
        "{{ '%9999999999d' % 1 }}",
        "{{ '%099999999d' % 1 }}",
        "{{ '%.999999999f' % 1 }}",
        "{{ '%*d' % (10 ** 12, 1) }}",
        "{{ '%.999999999d' % 1 }}",
        "{{ '%.99999999999999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:.99999}'.format(1.5) }}",
        "{{ '{:>{w}}'.format('a', w=10 ** 10) }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ [1] * 10 ** 10 }}",
        "{{ (1,) * 10 ** 30 }}",
        "{{ 'a'.center(10 ** 10) }}",
        "{{ 'a'.ljust(10 ** 20) }}",
        "{{ 'a'.zfill(10 ** 10) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ 'a\tb'.expandtabs(10 ** 10) }}",
        "{{ 'a' | indent(10 ** 10, true) }}",
        "{{ [1] | tojson(indent=10 ** 10) }}",
        "{{ [1] | batch(10 ** 10, 1) | list }}",
        "{{ [1] | slice(10 ** 10) | list }}",
        "{{ range(10 ** 10) }}",
        "{{ 10 ** 1000 }}",
        "{{ [range(100000) | list] * 100000 }}",
        "{% for i in range(100000) %}{{ 'a' * 10000 }}{% endfor %}",
        "{% set x %}{% for i in range(100000) %}{{ 'a' * 10000 }}{% endfor %}{% endset %}",
        "{% macro m() %}{{ 'a' * 1000000 }}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(n) %}{{ m([n]) }}{% endmacro %}{{ m(1) }}",
        "{% for x in list recursive %}{{ loop(list) }}{% endfor %}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% macro m(f) %}{{ f(f) }}{% endmacro %}{{ m(m) }}",
    ] {
        assert_bounded(source);
    }
}

#[test]
fn a_rendering_may_take_only_so_long() {
    let every = "{% for i in range(100000) %}{% for j in range(100000) %}";
    let ends = "{% endfor %}{% endfor %}";
    for step in [
        "",
        "{{ '' }}",
        "{% if 'b' in long %}{% endif %}",
        "{% if long.find('b') %}{% endif %}",
        "{% if long == other %}{% endif %}",
        "{% if long.count('a') %}{% endif %}",
        "{% if long | length %}{% endif %}",
        "{% if many | sort %}{% endif %}",
        "{% if many | unique | list %}{% endif %}",
        "{% if many == copy %}{% endif %}",
        "{% if 7 in many %}{% endif %}",
        "{% if long[50000] %}{% endif %}",
        "{% if long[::-1] %}{% endif %}",
        "{% if long.split('b') %}{% endif %}",
        "{% if long.strip(long) %}{% endif %}",
        "{% if many | tojson %}{% endif %}",
        "{% if many | join %}{% endif %}",
        "{% if long | int %}{% endif %}",
        "{% if {long: 1}[long] %}{% endif %}",
        "{% if long is lower %}{% endif %}",
        "{% if long.startswith(long) %}{% endif %}",
        "{% if long < other %}{% endif %}",
        "{% if many | map('string') | list %}{% endif %}",
        "{% if long | upper %}{% endif %}",
        "{% if long.isalpha() %}{% endif %}",
        "{% if strftime_now('%Y') %}{% endif %}",
    ] {
        let set = "{% set long = 'a' * 1000000 %}{% set other = 'a' * 999999 ~ 'b' %}{% set many = range(50000) | list %}\
                   {% set copy = range(50000) | list %}";
        assert_bounded(&format!("{set}{every}{step}{ends}"));
    }
}

#[test]
fn an_input_may_nest_only_so_far_and_a_namespace_may_hold_itself() {
    let nested = format!("{{\"x\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(render_with("{{ x }}".into(), nested).unwrap_err().kind, ErrorKind::Limit);
    let nested = format!("{{\"x\": {}1{}}}", "[".repeat(120), "]".repeat(120));
    assert!(
        render_with("{{ x }}{{ x | tojson }}{{ x == x }}{{ {x: 1} is mapping }}".into(), nested).is_err()
    );
    let wide = format!("{{\"x\": [{}1]}}", "1,".repeat(1_000_000));
    assert_eq!(render_with("{{ x | length }}".into(), wide).unwrap(), "1000001");
    for source in [
        "{% set ns.a = ns %}{{ ns }}{{ ns == ns.a }}",
        "{% set ns.a = [ns, {'b': ns}] %}{{ ns.a }}{{ ns.a == ns.a }}",
    ] {
        assert!(render(format!("{{% set ns = namespace() %}}{source}")).is_ok(), "{source}");
    }
}

#[test]
fn chains_of_any_length_are_dropped() {
    for step in ["ns.x = namespace(x=ns.x)", "ns.x = [namespace(x=ns.x)]", "ns.l = chain(ns.l)", "ns.x = 1"] {
        let source = format!(
            "{{% macro chain(f) %}}{{% macro g() %}}{{% endmacro %}}{{% set ns.f = g %}}{{% set g = 1 %}}{{% endmacro %}}\
             {{% set ns = namespace(x=none, f=none, l='') %}}{{% for i in range(50000) %}}{{% set {step} %}}{{{{ chain(ns.f) }}}}\
             {{% endfor %}}{{% set ns.x = 1 %}}{{% set ns.f = 1 %}}done"
        );
        let source = source.replace("ns.l = chain(ns.l)", "ns.l = loop.changed(ns.x, loop)");
        assert_eq!(
            render_with(source.clone(), "{}".into()).map_err(|error| error.to_string()),
            Ok("done".into()),
            "{source}"
        );
    }
    // All pairs of a list of namespaces, each in the one before.
    let source = "{% set ns = namespace(all=[]) %}{% for i in range(300) %}{% set ns.all = ns.all + [namespace()] %}{% endfor %}\
                  {% for n in ns.all %}{% set n.next = loop.nextitem %}{% set n.back = loop.previtem %}{% endfor %}ok";
    assert_eq!(render(source).unwrap(), "ok");
    // A loop's neighbours are loops, and theirs: each twice as often.
    let source = "{% set ns = namespace(x=[1, 1, 1]) %}{% for i in range(200) %}{% for l in ns.x %}{% if loop.index == 2 %}\
                  {% set ns.y = [loop, loop, loop] %}{% endif %}{% endfor %}{% set ns.x = ns.y %}{% endfor %}";
    assert_bounded(source);
}

/// Fragments of templates in any order: whatever they are, nothing panics and all ends.
#[test]
fn no_soup_of_fragments_panics() {
    let fragments: Vec<&str> = include_str!("../../tests/data/jinja/golden.json")
        .lines()
        .filter_map(|line| line.trim().strip_prefix("\"template\": \""))
        .flat_map(|line| line.split_inclusive([' ', '(', ')', '|', '.', ',', '}', '%']))
        .filter(|fragment| !fragment.contains('\\'))
        .collect();
    let limits = Limits { time: Duration::from_millis(20), bytes: 1 << 20, ..Limits::default() };
    let mut seed = 1_u64;
    let mut next = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let rounds = std::env::var("QERNEL_SOUP").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(50_000);
    for _ in 0..rounds {
        let begin = ["{{ ", "{% if ", "{% for x in ", "{% set x = ", ""][next(5)];
        let soup: String = (0..next(8) + 1).map(|_| fragments[next(fragments.len())]).collect();
        let end = [" }}", " %}", " %}{% endif %}", " %}{{ x }}{% endfor %}", ""][next(5)];
        let source = format!("{begin}{soup}{end}");
        let _ = Template::compile(&source, limits)
            .and_then(|template| template.render(r#"{"text": "aé", "words": ["b", "a"]}"#));
    }
}

#[test]
fn no_cut_of_a_template_panics() {
    let source = include_str!("../../tests/data/tools.jinja");
    for end in (0..source.len()).filter(|end| source.is_char_boundary(*end)) {
        let _ =
            Template::compile(&source[..end], Limits::default()).and_then(|template| template.render("{}"));
    }
    for source in [
        "{{ [][::-1] }}",
        "{{ ''[::-1] }}",
        "{{ ()[::-2] }}",
        "{' incbbude 'chat_t' ie 'chat_temges[tool{{ [][::-2] }}{a':('x' }=",
    ] {
        assert!(render(source).is_ok(), "{source}");
    }
}
