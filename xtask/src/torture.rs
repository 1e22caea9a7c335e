//! Writes the C torture program: every function of the header, every parameter, every attack.
//!
//! Made from the header's declarations, so a new export is attacked without anyone's doing; a
//! parameter whose kind is unknown is an error here.

use std::fmt::Write as _;

use crate::header::declarations;

/// One parameter of a declaration.
struct Parameter {
    /// Without the name, single-spaced: `const char *`, `dolly_result **`.
    kind: String,
    name: String,
}

/// What may be done to a parameter, and what stands there while others are attacked.
enum Role {
    /// A handle; the first of a call must be given, later ones may be NULL.
    Handle { kind: String, required: bool },
    /// Bytes of a text; its length follows.
    Text,
    /// The first values of an array; its count follows, perhaps after further arrays.
    Array { element: String, required: bool },
    /// Length of the text or count of the arrays before it.
    Length,
    /// Where a result goes.
    Out { element: String },
    /// Where an error object goes.
    Error,
    /// A function to be called.
    Callback { required: bool },
    /// Any other value, with one that is allowed.
    Plain(&'static str),
}

/// An argument in C while it is attacked, the status it must give, and the attack's name.
struct Attack {
    argument: String,
    length: Option<String>,
    status: &'static str,
    name: String,
}

const NULL: &str = "DOLLY_STATUS_NULL_POINTER";
const HANDLE: &str = "DOLLY_STATUS_INVALID_HANDLE";
const UTF8: &str = "DOLLY_STATUS_INVALID_UTF8";
const LENGTH: &str = "DOLLY_STATUS_INVALID_LENGTH";
const ARGUMENT: &str = "DOLLY_STATUS_INVALID_ARGUMENT";

/// The program for a header; it includes `tests/c/torture.h`.
pub fn program(header: &str) -> Result<String, String> {
    let mut out = String::from("#include \"torture.h\"\n\n");
    let mut calls = String::new();
    for declaration in declarations(header) {
        let (name, parameters) = parse(&declaration)?;
        out.push_str(&function(&name, &parameters)?);
        let _ = writeln!(calls, "    torture_{name}();");
    }
    let _ = write!(
        out,
        "int main(int argc, char **argv) {{\n    set_up(model_path(argc, argv));\n{calls}    return \
         tear_down();\n}}\n"
    );
    Ok(out)
}

/// `TYPE NAME(PARAMETERS)` into name and parameters.
fn parse(declaration: &str) -> Result<(String, Vec<Parameter>), String> {
    let unknown = || format!("no declaration of a function: {declaration}");
    let (head, rest) = declaration.split_once('(').ok_or_else(unknown)?;
    let name = head.rsplit([' ', '*']).next().ok_or_else(unknown)?;
    let inside = rest.strip_suffix(')').ok_or_else(unknown)?;
    let parameter = |text: &str| {
        let text = text.trim();
        let at = text.rfind([' ', '*']).ok_or_else(unknown)? + 1;
        Ok(Parameter { kind: text[..at].trim().to_owned(), name: text[at..].to_owned() })
    };
    let parameters = match inside.trim() {
        "" | "void" => Ok(Vec::new()),
        inside => inside.split(',').map(parameter).collect::<Result<_, String>>(),
    };
    Ok((name.to_owned(), parameters?))
}

fn role(function: &str, index: usize, all: &[Parameter]) -> Result<Role, String> {
    let Parameter { kind, name } = &all[index];
    let array = all[index..].iter().any(|p| p.name.ends_with("_count") && p.kind == "size_t");
    let constant = kind.strip_prefix("const ").and_then(|kind| kind.strip_suffix(" *"));
    let pointee = kind.strip_suffix(" *").or_else(|| kind.strip_suffix('*')).map(str::trim_end);
    let handle = pointee.map(|p| p.trim_start_matches("const ")).filter(|p| is_handle(p));
    Ok(match (kind.as_str(), constant, pointee) {
        ("dolly_error **", ..) => Role::Error,
        ("const char *", ..) => Role::Text,
        ("size_t", ..) if name.ends_with("_len") || name.ends_with("_count") => Role::Length,
        ("size_t", ..) => Role::Plain("0"),
        ("bool", ..) => Role::Plain("true"),
        ("int32_t" | "uint64_t", ..) => Role::Plain("0"),
        ("float", ..) => Role::Plain("1.0f"),
        ("void *", ..) => Role::Plain("NULL"),
        ("dolly_text_callback", ..) => Role::Callback { required: true },
        ("dolly_progress_callback", ..) => Role::Callback { required: false },
        (_, Some(element), _) if array && handle.is_none() => {
            let required = name != "contexts";
            Role::Array { element: element.to_owned(), required }
        }
        _ if handle.is_some() => {
            let kind = handle.unwrap_or_default().to_owned();
            Role::Handle { kind, required: index == 0 }
        }
        (_, None, Some(element)) => Role::Out { element: element.to_owned() },
        _ => match kind.strip_suffix('*').filter(|element| element.contains('*')) {
            Some(element) => Role::Out { element: element.to_owned() },
            None => return Err(format!("{function}: no attack for `{kind} {name}`")),
        },
    })
}

fn is_handle(name: &str) -> bool {
    let other = ["dolly_str", "dolly_status"];
    name.starts_with("dolly_") && !other.contains(&name) && !name.contains(['*', ' '])
}

/// What stands at each place while another is attacked.
fn baseline(role: &Role, name: &str) -> String {
    match role {
        Role::Handle { kind, .. } => format!("valid_{kind}"),
        Role::Text => "\"x\"".to_owned(),
        Role::Array { element, .. } => format!("array_{element}"),
        Role::Length => "1".to_owned(),
        Role::Out { .. } => format!("&out_{name}"),
        Role::Error => "ERR".to_owned(),
        Role::Callback { required: true } => "no_piece".to_owned(),
        Role::Callback { required: false } => "no_progress".to_owned(),
        Role::Plain(value) => (*value).to_owned(),
    }
}

fn attacks(function: &str, role: &Role) -> Vec<Attack> {
    let attack = |argument: &str, length: Option<&str>, status, name: &str| Attack {
        argument: argument.to_owned(),
        length: length.map(str::to_owned),
        status,
        name: name.to_owned(),
    };
    match role {
        Role::Handle { kind, required } => handle_attacks(function, kind, *required),
        Role::Text => text_attacks(),
        Role::Array { element, required } => {
            let array = format!("array_{element}");
            let mut list = vec![attack(&array, Some("SIZE_MAX"), LENGTH, "huge")];
            list.push(attack(&array, Some("SIZE_MAX / 2"), LENGTH, "huge"));
            let most = format!("(size_t)DOLLY_MAX_INPUT_BYTES / sizeof({element}) + 1");
            list.push(attack(&array, Some(&most), LENGTH, "huge"));
            let odd = format!("(const {element} *)((uintptr_t)array_{element} + 1)");
            list.push(attack(&odd, Some("1"), ARGUMENT, "misaligned"));
            if *required {
                list.push(attack("NULL", Some("1"), NULL, "NULL"));
            }
            if element == "dolly_str" && function == "dolly_classify" {
                list.push(attack("array_bad_utf8", Some("1"), UTF8, "bad UTF-8"));
                list.push(attack("array_null", Some("1"), NULL, "NULL inside"));
                list.push(attack("array_huge", Some("1"), LENGTH, "huge inside"));
            }
            list
        }
        Role::Out { .. } => vec![attack("NULL", None, NULL, "NULL")],
        Role::Callback { required: true } => vec![attack("NULL", None, NULL, "NULL")],
        Role::Length | Role::Error | Role::Callback { .. } | Role::Plain(_) => Vec::new(),
    }
}

fn text_attacks() -> Vec<Attack> {
    let attack = |argument: &str, length: &str, status, name: &str| Attack {
        argument: argument.to_owned(),
        length: Some(length.to_owned()),
        status,
        name: name.to_owned(),
    };
    vec![
        attack("NULL", "1", NULL, "NULL"),
        attack("\"x\"", "SIZE_MAX", LENGTH, "huge"),
        attack("\"x\"", "SIZE_MAX / 2", LENGTH, "huge"),
        attack("\"x\"", "(size_t)DOLLY_MAX_INPUT_BYTES + 1", LENGTH, "huge"),
        attack("\"\\xff\"", "1", UTF8, "no UTF-8 byte"),
        attack("\"\\xc0\\xaf\"", "2", UTF8, "overlong"),
        attack("\"\\xed\\xa0\\x80\"", "3", UTF8, "surrogate"),
        attack("\"a\\xe2\\x82\"", "3", UTF8, "cut short"),
    ]
}

fn handle_attacks(function: &str, kind: &str, required: bool) -> Vec<Attack> {
    let attack = |argument: String, status, name: &str| Attack {
        argument,
        length: None,
        status,
        name: name.to_owned(),
    };
    let mut list = vec![attack(format!("freed_{kind}"), HANDLE, "freed")];
    list.push(attack(format!("({kind} *)forged(valid_{kind}, i)"), HANDLE, "forged"));
    for other in HANDLES.into_iter().filter(|other| *other != kind) {
        list.push(attack(format!("({kind} *)valid_{other}"), HANDLE, "another type"));
    }
    if required {
        let status = if function.ends_with("_free") { "DOLLY_STATUS_OK" } else { NULL };
        list.push(attack("NULL".to_owned(), status, "NULL"));
    }
    list
}

/// The types `tests/c/torture.h` has handles of.
const HANDLES: [&str; 10] = [
    "dolly_error",
    "dolly_cancel",
    "dolly_loader",
    "dolly_pipeline",
    "dolly_options",
    "dolly_result",
    "dolly_batch",
    "dolly_stream",
    "dolly_scores",
    "dolly_buffer",
];

fn function(name: &str, parameters: &[Parameter]) -> Result<String, String> {
    let roles = (0..parameters.len()).map(|index| role(name, index, parameters));
    let roles: Vec<Role> = roles.collect::<Result<_, _>>()?;
    let mut body = locals(parameters, &roles);
    let mut count = 0;
    for (index, role) in roles.iter().enumerate() {
        for attack in attacks(name, role) {
            body.push_str(&call(name, parameters, &roles, index, &attack));
            count += 1;
        }
    }
    if count == 0 {
        body.push_str(&harmless(name, parameters)?);
    }
    Ok(format!("static void torture_{name}(void) {{\n{body}}}\n\n"))
}

/// Arrays to read, and marked places for results.
fn locals(parameters: &[Parameter], roles: &[Role]) -> String {
    let mut out = String::new();
    let mut arrays: Vec<&str> = Vec::new();
    for (parameter, role) in parameters.iter().zip(roles) {
        match role {
            Role::Array { element, .. } if !arrays.contains(&element.as_str()) => {
                arrays.push(element);
                let value =
                    if element == "dolly_str" { "{{\"x\", 1}, {\"y\", 1}}" } else { "{1, 2}" };
                let _ = writeln!(out, "    const {element} array_{element}[2] = {value};");
                if element == "dolly_str" {
                    out.push_str(BAD_TEXTS);
                }
            }
            Role::Out { element } => {
                let name = &parameter.name;
                let space = if element.ends_with('*') { "" } else { " " };
                let _ = writeln!(out, "    {element}{space}out_{name};");
                let _ = writeln!(out, "    memset(&out_{name}, MARK, sizeof out_{name});");
            }
            _ => {}
        }
    }
    out
}

const BAD_TEXTS: &str = "    const dolly_str array_bad_utf8[1] = {{\"\\xff\", 1}};
    const dolly_str array_null[1] = {{NULL, 1}};
    const dolly_str array_huge[1] = {{\"x\", SIZE_MAX}};
    (void)array_bad_utf8, (void)array_null, (void)array_huge;
";

/// One attacked call, with and without a place for the error, and the check of all results.
fn call(
    name: &str,
    parameters: &[Parameter],
    roles: &[Role],
    attacked: usize,
    attack: &Attack,
) -> String {
    let mut arguments: Vec<String> =
        roles.iter().zip(parameters).map(|(role, p)| baseline(role, &p.name)).collect();
    arguments[attacked] = attack.argument.clone();
    if let Some(length) = &attack.length {
        let follows = (attacked..roles.len()).find(|i| matches!(roles[*i], Role::Length));
        if let Some(index) = follows {
            arguments[index] = length.clone();
        }
    }
    let what = format!("{name}: {}: {}", parameters[attacked].name, attack.name);
    let mut calls = vec![arguments.join(", ")];
    if let Some(error) = roles.iter().position(|role| matches!(role, Role::Error)) {
        arguments[error] = "NULL".to_owned();
        calls.push(arguments.join(", "));
    }
    let mut out = String::new();
    let forged = attack.name == "forged";
    let indent = if forged { "        " } else { "    " };
    if forged {
        out.push_str("    for (int i = 0; i < FORGED; i++) {\n");
    }
    for arguments in calls {
        let status = attack.status;
        let _ = writeln!(out, "{indent}refuse(\"{what}\", {status}, {name}({arguments}));");
    }
    if forged {
        out.push_str("    }\n");
    }
    for (index, (parameter, role)) in parameters.iter().zip(roles).enumerate() {
        if matches!(role, Role::Out { .. }) && index != attacked {
            let place = &parameter.name;
            let _ = writeln!(out, "    untouched(&out_{place}, sizeof out_{place});");
        }
    }
    out
}

/// Functions without anything to attack are called with the ends of what they take.
fn harmless(name: &str, parameters: &[Parameter]) -> Result<String, String> {
    match parameters {
        [] => Ok(format!("    CHECK({name}() != 0);\n    attacks++;\n")),
        [one] if one.kind == "int32_t" => Ok(format!(
            "    CHECK({name}(INT32_MIN) != NULL && {name}(INT32_MAX) != NULL);\n    attacks++;\n"
        )),
        _ => Err(format!("{name}: nothing to attack and no way to call it")),
    }
}
