//! Several files become one tree: overrides, `include`, `extends` (Compose Specification, "Merge", "Include",
//! "Extend").
//!
//! Everything happens on trees of nodes, before a field is read; a node remembers its file, so that a refusal names
//! the place that a person wrote.

use crate::interpolate::interpolate;
use crate::load::LoadOptions;
use crate::reader::Reader;
use crate::yaml::{self, Node, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files of one project. Real ones have a handful.
const MAX_FILES: usize = 64;

/// Services that extend services that extend services.
const MAX_EXTENDS: usize = 32;

/// Lists in which an override replaces what is there.
const REPLACED: &[&str] = &["command", "entrypoint", "test"];

/// Fields that are a mapping or a list of `NAME=VALUE`, merged by name.
const BY_NAME: &[&str] = &["environment", "labels", "annotations", "sysctls"];

/// Fields that are a mapping or a list of names, merged by name.
const BY_KEY: &[&str] = &["depends_on", "networks"];

/// Lists whose entries are merged by where they appear in the container.
const BY_TARGET: &[&str] = &["volumes", "devices", "secrets", "configs"];

/// Fields that are a word or a list of words.
const WORD_OR_LIST: &[&str] = &["dns", "dns_search", "tmpfs", "env_file"];

pub struct Assembler<'a> {
    reader: &'a Reader<'a>,
    options: &'a LoadOptions,
    files: usize,
}

impl<'a> Assembler<'a> {
    pub fn new(reader: &'a Reader<'a>, options: &'a LoadOptions) -> Self {
        Self { reader, options, files: 0 }
    }

    /// Reads the files in order, each over those before it.
    pub fn files(&mut self, files: &[PathBuf], variables: &BTreeMap<String, String>) -> Node {
        let mut tree = empty();
        for file in files {
            if let Some(next) = self.file(file, &self.options.folder.clone(), variables) {
                tree = merge(tree, next, "", true);
            }
        }
        tree
    }

    /// Reads a text as the first file.
    pub fn text(&mut self, text: &str, variables: &BTreeMap<String, String>) -> Node {
        match yaml::parse(text) {
            Ok(mut node) => {
                self.files = 1;
                interpolate_tree(self.reader, &mut node, "", variables);
                self.finish(node, &self.options.folder.clone(), variables)
            }
            Err(error) => {
                self.reader.refuse(error.line, "", error.reason);
                empty()
            }
        }
    }

    fn file(&mut self, path: &Path, folder: &Path, variables: &BTreeMap<String, String>) -> Option<Node> {
        let node = self.parse(path, variables)?;
        let mut node = self.finish(node, folder, variables);
        if folder != self.options.folder {
            rebase(&mut node, folder);
        }
        Some(node)
    }

    /// Reads one file; nothing but YAML and variables.
    fn parse(&mut self, path: &Path, variables: &BTreeMap<String, String>) -> Option<Node> {
        let shown = path.display().to_string();
        if self.files == MAX_FILES {
            self.reader.refuse(0, "", format!("more than {MAX_FILES} files"));
            return None;
        }
        let number = if self.files == 0 { 0 } else { self.reader.add_file(&shown) };
        self.files += 1;
        let read = crate::text::read(path).map_err(|error| (0, error.to_string()));
        let parsed = read.and_then(|text| yaml::parse(&text).map_err(|error| (error.line, error.reason)));
        match parsed {
            Ok(mut node) => {
                yaml::mark(&mut node, number);
                interpolate_tree(self.reader, &mut node, "", variables);
                Some(node)
            }
            Err((line, reason)) => {
                self.reader.refuse(yaml::place(number, line), "", reason);
                None
            }
        }
    }

    /// Resolves `include` and `extends` of one file's tree.
    fn finish(&mut self, mut node: Node, folder: &Path, variables: &BTreeMap<String, String>) -> Node {
        let include = take(&mut node, "include");
        let services: Vec<(String, Node)> = match get(&node, "services").map(|it| &it.value) {
            Some(Value::Mapping(services)) => services.clone(),
            _ => Vec::new(),
        };
        for (name, _) in &services {
            let extended = self.extended(&node, name, folder, variables, 0);
            if let (Some(extended), Some(services)) = (extended, get_mut(&mut node, "services")) {
                set(services, name, extended);
            }
        }
        match include {
            Some(include) => self.include(node, &include, folder, variables),
            None => node,
        }
    }

    /// The service with everything that it extends below it.
    fn extended(
        &mut self,
        tree: &Node,
        name: &str,
        folder: &Path,
        variables: &BTreeMap<String, String>,
        depth: usize,
    ) -> Option<Node> {
        let mut service = get(get(tree, "services")?, name)?.clone();
        let field = format!("services.{name}.extends");
        let Some(extends) = take(&mut service, "extends") else { return Some(service) };
        if depth == MAX_EXTENDS {
            self.reader.refuse(extends.line, &field, "these services extend each other");
            return Some(service);
        }
        let (base_name, file) = match &extends.value {
            Value::Scalar { text, .. } => (text.clone(), None),
            _ => {
                let text = |key: &str| get(&extends, key).and_then(|it| it.text()).map(str::to_owned);
                for (key, node) in self.reader.mapping(&extends, &field) {
                    if key != "service" && key != "file" {
                        self.reader.unknown(node.line, &field, key, &["service", "file"]);
                    }
                }
                (text("service").unwrap_or_default(), text("file"))
            }
        };
        let base = match file {
            None => self.extended(tree, &base_name, folder, variables, depth + 1),
            Some(file) => {
                let path = folder.join(&file);
                let base_folder = crate::load::folder_of(&path);
                self.parse(&path, variables).and_then(|tree| {
                    let mut base = self.extended(&tree, &base_name, &base_folder, variables, depth + 1)?;
                    rebase_service(&mut base, &base_folder);
                    Some(base)
                })
            }
        };
        match base {
            Some(base) => Some(merge(base, service, "services.*", true)),
            None => {
                self.reader.refuse(extends.line, &field, format!("there is no service {base_name:?} to extend"));
                Some(service)
            }
        }
    }

    /// Adds the resources of included files; none may be there already with another definition.
    fn include(
        &mut self,
        mut node: Node,
        include: &Node,
        folder: &Path,
        variables: &BTreeMap<String, String>,
    ) -> Node {
        let entries = match &include.value {
            Value::Sequence(entries) => entries.clone(),
            _ => {
                self.reader.refuse(include.line, "include", "must be a list");
                return node;
            }
        };
        for (index, entry) in entries.iter().enumerate() {
            let field = format!("include[{index}]");
            let (mut paths, mut base, mut env_files) = (Vec::new(), None, None);
            if let Some(path) = entry.text() {
                paths.push(path.to_owned());
            } else {
                for (key, node) in self.reader.mapping(entry, &field) {
                    match key.as_str() {
                        "path" => paths = self.reader.words(node, &field),
                        "project_directory" => base = node.text().map(|it| folder.join(it)),
                        "env_file" => env_files = Some(self.reader.words(node, &field)),
                        _ => {
                            self.reader.unknown(node.line, &field, key, &["path", "project_directory", "env_file"])
                        }
                    }
                }
            }
            let paths: Vec<PathBuf> = paths.iter().map(|path| folder.join(path)).collect();
            let Some(first) = paths.first() else {
                self.reader.refuse(entry.line, &field, "needs a path");
                continue;
            };
            let base = base.unwrap_or_else(|| crate::load::folder_of(first));
            let variables = self.variables_of(&base, env_files.as_deref(), folder, variables, entry.line);
            let mut included = empty();
            for path in &paths {
                if let Some(next) = self.file(path, &base, &variables) {
                    included = merge(included, next, "", true);
                }
            }
            node = self.add(node, included, &field, entry.line);
        }
        node
    }

    /// The including project's variables win over the included one's own.
    fn variables_of(
        &self,
        base: &Path,
        env_files: Option<&[String]>,
        folder: &Path,
        variables: &BTreeMap<String, String>,
        line: usize,
    ) -> BTreeMap<String, String> {
        let mut all = variables.clone();
        let files: Vec<PathBuf> = match env_files {
            Some(files) => files.iter().map(|file| folder.join(file)).collect(),
            None => vec![base.join(".env")],
        };
        for file in files {
            let read = crate::text::read(&file);
            match read.map(|text| crate::dotenv::parse(&text, &all)) {
                Ok(Ok(parsed)) => {
                    for variable in parsed {
                        for message in variable.unset_notices() {
                            let place = format!("{}:{}: ", file.display(), variable.line);
                            self.reader.notice(line, "include", place + &message);
                        }
                        if let Some(value) = variable.value {
                            all.entry(variable.name).or_insert(value);
                        }
                    }
                }
                Ok(Err((at, reason))) => {
                    self.reader.refuse(line, "include", format!("{}:{at}: {reason}", file.display()));
                }
                Err(_) if env_files.is_none() => {}
                Err(error) => self.reader.refuse(line, "include", format!("{}: {error}", file.display())),
            }
        }
        all
    }

    fn add(&self, mut node: Node, included: Node, field: &str, line: usize) -> Node {
        let Value::Mapping(sections) = included.value else { return node };
        for (section, content) in sections {
            if matches!(section.as_str(), "name" | "version") {
                continue;
            }
            let Value::Mapping(resources) = content.value else { continue };
            if get(&node, &section).is_none() {
                set(&mut node, &section, empty());
            }
            let Some(there) = get_mut(&mut node, &section) else { continue };
            for (name, resource) in resources {
                match get(there, &name) {
                    Some(known) if !same(known, &resource) => self.reader.refuse(
                        line,
                        field,
                        format!("{section}.{name} is defined here and in the included file"),
                    ),
                    Some(_) => {}
                    None => set(there, &name, resource),
                }
            }
        }
        node
    }
}

/// Puts variables into every value; keys stay as they are.
fn interpolate_tree(reader: &Reader<'_>, node: &mut Node, field: &str, variables: &BTreeMap<String, String>) {
    let below = |key: &str| if field.is_empty() { key.to_owned() } else { format!("{field}.{key}") };
    match &mut node.value {
        Value::Scalar { text, plain } if text.contains('$') => match interpolate(text, variables) {
            Ok(value) => {
                for name in value.unset {
                    reader.notice(node.line, field, format!("variable {name} is not set and is taken as empty"));
                }
                // What was written is there, even when it became empty: it is not null.
                (*text, *plain) = (value.text, false);
            }
            Err(reason) => reader.refuse(node.line, field, reason),
        },
        Value::Scalar { .. } => {}
        Value::Sequence(nodes) => {
            for (index, node) in nodes.iter_mut().enumerate() {
                interpolate_tree(reader, node, &format!("{field}[{index}]"), variables);
            }
        }
        Value::Mapping(entries) => {
            for (key, node) in entries {
                interpolate_tree(reader, node, &below(key), variables);
            }
        }
    }
}

fn empty() -> Node {
    Node { line: 1, value: Value::Mapping(Vec::new()) }
}

fn get<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    match &node.value {
        Value::Mapping(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
        _ => None,
    }
}

fn get_mut<'n>(node: &'n mut Node, key: &str) -> Option<&'n mut Node> {
    match &mut node.value {
        Value::Mapping(entries) => entries.iter_mut().find(|(name, _)| name == key).map(|(_, node)| node),
        _ => None,
    }
}

fn take(node: &mut Node, key: &str) -> Option<Node> {
    let Value::Mapping(entries) = &mut node.value else { return None };
    let at = entries.iter().position(|(name, _)| name == key)?;
    Some(entries.remove(at).1)
}

fn set(node: &mut Node, key: &str, value: Node) {
    if let Some(there) = get_mut(node, key) {
        *there = value;
    } else if let Value::Mapping(entries) = &mut node.value {
        entries.push((key.to_owned(), value));
    }
}

/// Equal but for the places.
fn same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::Scalar { text: a, .. }, Value::Scalar { text: b, .. }) => a == b,
        (Value::Sequence(a), Value::Sequence(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Mapping(a), Value::Mapping(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((x, a), (y, b))| x == y && same(a, b))
        }
        _ => false,
    }
}

/// Lays `over` upon `base`. `path` is the dotted place; `in_service` is false below maps of free names.
fn merge(base: Node, over: Node, path: &str, known: bool) -> Node {
    let key = path.rsplit('.').next().unwrap_or_default();
    if over.is_null() {
        return base;
    }
    if known && BY_NAME.contains(&key) {
        return merge_entries(as_mapping(base, true), as_mapping(over, true), path, false);
    }
    if known && BY_KEY.contains(&key) && path.starts_with("services.") {
        return merge_entries(as_mapping(base, false), as_mapping(over, false), path, false);
    }
    if known && WORD_OR_LIST.contains(&key) {
        return appended(as_list(base), as_list(over));
    }
    match (&base.value, &over.value) {
        (Value::Mapping(_), Value::Mapping(_)) => merge_entries(base, over, path, known),
        (Value::Sequence(_), Value::Sequence(_)) if !REPLACED.contains(&key) => {
            if known && BY_TARGET.contains(&key) && path.starts_with("services.") {
                return by_target(base, over, key);
            }
            appended(base, over)
        }
        _ => over,
    }
}

fn merge_entries(base: Node, over: Node, path: &str, known: bool) -> Node {
    let (line, mut entries) = match base.value {
        Value::Mapping(entries) => (over.line, entries),
        _ => return over,
    };
    let Value::Mapping(overs) = over.value else { return Node { line, value: Value::Mapping(entries) } };
    for (name, value) in overs {
        // Services, networks and the like are known below their free names.
        let below = match path {
            "" => name.clone(),
            "services" | "networks" | "volumes" | "secrets" | "configs" => format!("{path}.*"),
            _ => format!("{path}.{name}"),
        };
        match entries.iter_mut().find(|(known, _)| *known == name) {
            Some((_, there)) => {
                let base = std::mem::replace(there, empty());
                *there = merge(base, value, &below, known);
            }
            None => entries.push((name, value)),
        }
    }
    Node { line, value: Value::Mapping(entries) }
}

/// A list of `NAME=VALUE` or of names as a mapping.
fn as_mapping(node: Node, with_values: bool) -> Node {
    let line = node.line;
    let Value::Sequence(nodes) = node.value else { return node };
    let mut entries = Vec::new();
    for node in nodes {
        let Some(text) = node.text() else { continue };
        let null = Value::Scalar { text: String::new(), plain: true };
        let (name, value) = match text.split_once('=') {
            Some((name, value)) if with_values => {
                (name.to_owned(), Value::Scalar { text: value.to_owned(), plain: false })
            }
            _ => (text.to_owned(), null),
        };
        entries.retain(|(known, _)| *known != name);
        entries.push((name, Node { line: node.line, value }));
    }
    Node { line, value: Value::Mapping(entries) }
}

fn as_list(node: Node) -> Node {
    match node.value {
        Value::Sequence(_) => node,
        _ if node.is_null() => Node { line: node.line, value: Value::Sequence(Vec::new()) },
        _ => Node { line: node.line, value: Value::Sequence(vec![node]) },
    }
}

/// Both lists; what is there already is not repeated.
fn appended(base: Node, over: Node) -> Node {
    let line = over.line;
    let (Value::Sequence(mut nodes), Value::Sequence(more)) = (base.value, over.value) else {
        return Node { line, value: Value::Sequence(Vec::new()) };
    };
    for node in more {
        if !nodes.iter().any(|known| same(known, &node)) {
            nodes.push(node);
        }
    }
    Node { line, value: Value::Sequence(nodes) }
}

/// Both lists; an entry takes the place of the one with the same target.
fn by_target(base: Node, over: Node, key: &str) -> Node {
    let line = over.line;
    let (Value::Sequence(mut nodes), Value::Sequence(more)) = (base.value, over.value) else {
        return Node { line, value: Value::Sequence(Vec::new()) };
    };
    for node in more {
        let target = target_of(&node, key);
        match nodes.iter_mut().find(|known| target_of(known, key) == target) {
            Some(there) => *there = node,
            None => nodes.push(node),
        }
    }
    Node { line, value: Value::Sequence(nodes) }
}

fn target_of(node: &Node, key: &str) -> String {
    if let Some(text) = node.text() {
        let parts: Vec<&str> = text.split(':').collect();
        return match (key, parts.as_slice()) {
            ("secrets", _) => format!("/run/secrets/{text}"),
            ("configs", _) => format!("/{text}"),
            (_, [_, target, ..]) => (*target).to_owned(),
            _ => text.to_owned(),
        };
    }
    let text = |key: &str| get(node, key).and_then(|it| it.text()).map(str::to_owned);
    text("target").or_else(|| text("source")).unwrap_or_default()
}

/// Relative paths of a file in another folder become absolute.
fn rebase(node: &mut Node, folder: &Path) {
    if let Some(Value::Mapping(services)) = get_mut(node, "services").map(|it| &mut it.value) {
        services.iter_mut().for_each(|(_, service)| rebase_service(service, folder));
    }
    for section in ["secrets", "configs"] {
        if let Some(Value::Mapping(objects)) = get_mut(node, section).map(|it| &mut it.value) {
            for (_, object) in objects {
                if let Some(file) = get_mut(object, "file") {
                    rebase_path(file, folder);
                }
            }
        }
    }
}

fn rebase_service(service: &mut Node, folder: &Path) {
    match get_mut(service, "env_file") {
        Some(Node { value: Value::Sequence(entries), .. }) => {
            for entry in entries {
                match get_mut(entry, "path") {
                    Some(path) => rebase_path(path, folder),
                    None => rebase_path(entry, folder),
                }
            }
        }
        Some(node) => rebase_path(node, folder),
        None => {}
    }
    let Some(Value::Sequence(volumes)) = get_mut(service, "volumes").map(|it| &mut it.value) else { return };
    for volume in volumes {
        if let Value::Scalar { text, .. } = &mut volume.value {
            if text.starts_with("./") || text.starts_with("../") || text.starts_with(".:") {
                *text = format!("{}/{text}", folder.display());
            }
        } else if get(volume, "type").and_then(Node::text) == Some("bind")
            && let Some(source) = get_mut(volume, "source")
        {
            rebase_path(source, folder);
        }
    }
}

fn rebase_path(node: &mut Node, folder: &Path) {
    if let Value::Scalar { text, .. } = &mut node.value
        && !text.starts_with(['/', '~'])
    {
        *text = folder.join(&*text).display().to_string();
    }
}
