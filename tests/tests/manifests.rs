//! What stands in `examples/kubernetes` and `examples/compose`: it fits the schemas of Kubernetes and of compose, its parts agree with each
//! other, and the configurations in it pass `ferrule-cloud check`, with the variables and files that a container would have.
//!
//! Nothing is started: there is no Kubernetes here. That a cluster behind a proxy does what it promises is tested by tests/cluster.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ferrule_testkit::Certs;
use ferrule_testkit::node::binary;
use ferrule_testkit::proc::output;
use ferrule_testkit::servers::{client, python};
use ferrule_tests::script;
use serde_json::Value;
use tempfile::TempDir;

fn examples(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples").join(folder)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {value:#}"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The files of a container: what it finds under a path, in a folder of ours.
struct Files {
    folder: TempDir,
    paths: BTreeMap<String, PathBuf>,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), paths: BTreeMap::new() }
    }

    fn put(&mut self, path: &str, content: impl AsRef<[u8]>) {
        let here = self.folder.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(here.parent().unwrap()).unwrap();
        fs::write(&here, content).unwrap();
        self.paths.insert(path.to_owned(), here);
    }

    /// `ferrule-cloud check` of the configuration at `path`, in which paths of the container become ours. What is named there and was
    /// not put is not found.
    fn check(&self, path: &str, environment: &BTreeMap<String, String>) -> (bool, String) {
        let here = &self.paths[path];
        let folder = self.folder.path().to_str().unwrap();
        let mut config = fs::read_to_string(here).unwrap();
        for root in ["/etc/ferrule/", "/run/secrets/", "/var/lib/ferrule"] {
            config = config.replace(&format!("\"{root}"), &format!("\"{folder}{root}"));
        }
        let own = self.folder.path().join("checked.toml");
        fs::write(&own, config).unwrap();
        let mut command = Command::new(binary("ferrule-cloud"));
        let ended = command.arg("check").arg("--config").arg(&own).envs(environment).output().unwrap();
        let said = [ended.stdout, ended.stderr].concat();
        (ended.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

// === Kubernetes ===

/// All objects, by kind and name.
fn kubernetes() -> BTreeMap<(String, String), Value> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(examples("kubernetes")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let json = output(Command::new(python()).arg(script("manifests.py")).args(&files));
    let documents: Vec<Value> = serde_json::from_str(&json).unwrap();
    let count = documents.len();
    let named = documents.into_iter().map(|document| {
        let name = (text(&document, "/kind").to_owned(), text(&document, "/metadata/name").to_owned());
        (name, document)
    });
    let objects: BTreeMap<_, _> = named.collect();
    assert_eq!(objects.len(), count, "two objects of one name");
    objects
}

/// The secrets of `tls`'s kind that README.md says how to make.
const MADE: [&str; 2] = ["ferrule-cluster", "ferrule-server"];

#[test]
fn kubernetes_objects_fit_the_schema_and_each_other() {
    let objects = kubernetes();
    let get = |kind: &str, name: &str| {
        let found = objects.get(&(kind.to_owned(), name.to_owned()));
        found.unwrap_or_else(|| panic!("no {kind} {name} in {:?}", objects.keys()))
    };
    let set = get("StatefulSet", "ferrule");
    let pod = set.pointer("/spec/template").unwrap();
    let labels = pod.pointer("/metadata/labels").unwrap();
    let container = pod.pointer("/spec/containers/0").unwrap();
    let ports: BTreeMap<&str, u64> = list(container, "/ports")
        .iter()
        .map(|port| (text(port, "/name"), port["containerPort"].as_u64().unwrap()))
        .collect();

    // Who chooses the pods.
    assert_eq!(set.pointer("/spec/selector/matchLabels"), Some(labels));
    let spread = pod.pointer("/spec/topologySpreadConstraints/0/labelSelector/matchLabels");
    assert_eq!(spread, Some(labels));
    assert_eq!(get("PodDisruptionBudget", "ferrule").pointer("/spec/selector/matchLabels"), Some(labels));
    let policy = get("NetworkPolicy", "ferrule");
    assert_eq!(policy.pointer("/spec/podSelector/matchLabels"), Some(labels));
    assert_eq!(policy.pointer("/spec/ingress/0/from/0/podSelector/matchLabels"), Some(labels));
    assert_eq!(set.pointer("/spec/replicas"), Some(&Value::from(3)));
    let governing = get("Service", text(set, "/spec/serviceName"));
    assert_eq!(governing.pointer("/spec/clusterIP"), Some(&Value::from("None")));

    // Ports go by their names, and each is let in by the policy.
    let mut served = BTreeSet::new();
    for ((kind, name), service) in &objects {
        if kind == "Service" {
            assert_eq!(service.pointer("/spec/selector"), Some(labels), "{name}");
            for port in list(service, "/spec/ports") {
                let target = text(port, "/targetPort");
                assert_eq!(Some(&port["port"].as_u64().unwrap()), ports.get(target), "{name}: {target}");
                served.insert(target);
            }
        }
    }
    let let_in: BTreeSet<&str> = list(policy, "/spec/ingress")
        .iter()
        .flat_map(|rule| list(rule, "/ports"))
        .map(|port| text(port, "/port"))
        .collect();
    let known: BTreeSet<&str> = ports.keys().copied().collect();
    assert_eq!((&served, &let_in), (&known, &known));
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let probe = &container[probe];
        assert!(probe["exec"].is_object() || known.contains(text(probe, "/tcpSocket/port")), "{probe}");
    }
    // What preStop takes is part of the grace, which has to leave 20 s for the stop itself.
    let stop = text(container, "/lifecycle/preStop/exec/command/2");
    let words: Vec<&str> = stop.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    let ["sleep", sleep, "timeout", limit, "ferrule-cloud", "cluster", "drain", "--data-dir", folder] =
        words[..]
    else {
        panic!("{stop}");
    };
    let most: u64 = [sleep, limit].iter().map(|seconds| seconds.parse::<u64>().unwrap()).sum();
    assert!(pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap() >= most + 20);
    // The node that is asked is the one that runs: by the folder of its probes.
    assert_eq!(text(container, "/livenessProbe/exec/command/3"), folder);

    // Volumes are mounted, and what they are made of is there.
    let mounted: BTreeSet<&str> =
        list(container, "/volumeMounts").iter().map(|mount| text(mount, "/name")).collect();
    let volumes = list(pod, "/spec/volumes");
    assert_eq!(volumes.iter().map(|volume| text(volume, "/name")).collect::<BTreeSet<_>>(), mounted);
    let readme = fs::read_to_string(examples("kubernetes").join("README.md")).unwrap();
    let mut files = Files::new();
    let (nodes, server) =
        (Certs::make(&["--node", "ferrule.nodes"]), Certs::make(&["--server", "mqtt.example"]));
    for mount in list(container, "/volumeMounts") {
        let (name, path) = (text(mount, "/name"), text(mount, "/mountPath"));
        let volume = volumes.iter().find(|volume| volume["name"] == name).unwrap();
        let entries = if let Some(secret) = volume.pointer("/secret/secretName").and_then(Value::as_str) {
            if MADE.contains(&secret) {
                // By the command there, from the files that `cert` makes.
                let (certs, stem) =
                    if secret == MADE[0] { (&nodes, "ferrule.nodes") } else { (&server, "server") };
                let line = readme.lines().find(|line| line.contains(&format!("secret generic {secret} ")));
                let line = line.unwrap_or_else(|| panic!("README.md does not say how to make {secret}"));
                let mut entries = Vec::new();
                for word in line.split_whitespace() {
                    if let Some((key, file)) =
                        word.strip_prefix("--from-file=").and_then(|rest| rest.split_once('='))
                    {
                        let file = file.rsplit('/').next().unwrap();
                        assert!(file == "ca.crt" || file.starts_with(stem), "{line}");
                        entries.push((key.to_owned(), fs::read(certs.path(file)).unwrap()));
                    }
                }
                entries
            } else {
                entries_of(&get("Secret", secret)["stringData"])
            }
        } else if let Some(map) = volume.pointer("/configMap/name").and_then(Value::as_str) {
            entries_of(&get("ConfigMap", map)["data"])
        } else {
            assert!(volume["emptyDir"].is_object(), "{volume}");
            Vec::new()
        };
        for (key, content) in entries {
            files.put(&format!("{path}/{key}"), content);
        }
    }

    // The environment, as kubelet fills it in.
    let mut environment: BTreeMap<String, String> = BTreeMap::new();
    for variable in list(container, "/env") {
        let value = if let Some(field) = variable.pointer("/valueFrom/fieldRef/fieldPath") {
            match field.as_str().unwrap() {
                "status.podIP" => "10.1.2.3".to_owned(),
                "metadata.name" => "ferrule-0".to_owned(),
                other => panic!("{other}"),
            }
        } else if let Some(secret) = variable.pointer("/valueFrom/secretKeyRef") {
            let data = &get("Secret", text(secret, "/name"))["stringData"];
            data[text(secret, "/key")].as_str().unwrap_or_else(|| panic!("{secret}")).to_owned()
        } else {
            // Only what stands before it is known.
            let known = environment.iter();
            known.fold(text(variable, "/value").to_owned(), |value, (name, known)| {
                value.replace(&format!("$({name})"), known)
            })
        };
        environment.insert(text(variable, "/name").to_owned(), value);
    }
    assert!(environment.values().all(|value| !value.contains("$(")), "{environment:?}");

    let args: Vec<&str> = list(container, "/args").iter().filter_map(Value::as_str).collect();
    let ["run", "--config", config] = args[..] else { panic!("{args:?}") };
    let (fine, said) = files.check(config, &environment);
    assert!(fine, "{said}");
    // It would notice: the variables are needed. (The address could be found by `seeds`; given, no start waits for the name server.)
    let needed = |name: &&String| name.starts_with("FERRULE__") && *name != "FERRULE__CLUSTER__ADVERTISE";
    for name in environment.keys().filter(needed) {
        let mut without = environment.clone();
        without.remove(name);
        assert!(!files.check(config, &without).0, "{name} is of no use");
    }
    // The configuration binds what the container says.
    let toml: toml::Table = toml::from_str(&fs::read_to_string(&files.paths[config]).unwrap()).unwrap();
    assert_eq!(binds(&toml), ports.values().copied().collect());
}

fn entries_of(data: &Value) -> Vec<(String, Vec<u8>)> {
    let entries = data.as_object().unwrap_or_else(|| panic!("no entries: {data}"));
    entries.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().into())).collect()
}

/// The ports that a configuration binds.
fn binds(toml: &toml::Table) -> BTreeSet<u64> {
    let listeners = toml["listener"].as_array().unwrap().iter();
    let binds = listeners.map(|listener| &listener["bind"]).chain([&toml["cluster"]["bind"]]);
    binds.map(|bind| bind.as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap()).collect()
}

// === compose ===

#[test]
fn the_compose_file_fits_the_schema_and_what_it_names() {
    let folder = examples("compose");
    let json = output(Command::new(client("compose", "driver")).arg(folder.join("compose.yaml")));
    let project: Value = serde_json::from_str(&json).unwrap();
    let services = project["services"].as_object().unwrap();
    let nodes: Vec<&String> = services.keys().filter(|name| name.starts_with("cloud-")).collect();
    assert_eq!(nodes, ["cloud-1", "cloud-2", "cloud-3"]);

    let toml: toml::Table =
        toml::from_str(&fs::read_to_string(folder.join("ferrule.toml")).unwrap()).unwrap();
    for name in &nodes {
        let service = &services[*name];
        let mut files = Files::new();
        for (kind, place) in [("configs", "configs"), ("secrets", "secrets")] {
            for used in list(service, &format!("/{kind}")) {
                let file = text(&project[place][text(used, "/source")], "/file");
                files.put(text(used, "/target"), fs::read(file).unwrap());
            }
        }
        let variables = service["environment"].as_object().unwrap();
        let environment: BTreeMap<String, String> =
            variables.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect();
        let (fine, said) = files.check("/etc/ferrule/ferrule.toml", &environment);
        assert!(fine, "{said}");
        // Its name is where the others reach it.
        assert_eq!(environment["FERRULE__NODE__ID"], **name);
        let bind = toml["cluster"]["bind"].as_str().unwrap();
        let port = bind.rsplit_once(':').unwrap().1;
        assert_eq!(environment["FERRULE__CLUSTER__ADVERTISE"], format!("[\"{name}:{port}\"]"));
        assert!(list(service, "/ports").is_empty(), "{name} is reached past the proxy");
    }

    // The database that the nodes ask for.
    let database = &services["postgres"]["environment"];
    let (user, name) = (text(database, "/POSTGRES_USER"), text(database, "/POSTGRES_DB"));
    assert_eq!(toml["store"]["url"].as_str(), Some(&*format!("postgres://{user}@postgres:5432/{name}")));
    assert_eq!(toml["store"]["password_file"].as_str(), database["POSTGRES_PASSWORD_FILE"].as_str());
    // HAProxy is believed by its network.
    let network = &project["networks"]["default"]["ipam"]["config"][0]["subnet"];
    let believed = toml["listener"][0]["proxy_protocol_from"][0].as_str();
    assert_eq!(believed, network.as_str());

    // HAProxy takes its file, finds every node, and listens where compose publishes.
    let certs = Certs::local(&[]);
    let here = tempfile::tempdir().unwrap();
    let haproxy = fs::read_to_string(folder.join("haproxy.cfg")).unwrap();
    fs::write(here.path().join("haproxy.cfg"), &haproxy).unwrap();
    std::os::unix::fs::symlink(certs.folder(), here.path().join("certs")).unwrap();
    output(Command::new("/usr/sbin/haproxy").arg("-c").arg("-f").arg(here.path().join("haproxy.cfg")));
    let listener = toml["listener"][0]["bind"].as_str().unwrap().rsplit_once(':').unwrap().1;
    for name in nodes {
        assert!(haproxy.contains(&format!("server {name} {name}:{listener}\n")), "{name}");
    }
    for port in list(&services["haproxy"], "/ports") {
        assert!(haproxy.contains(&format!("bind 0.0.0.0:{}", port["target"])), "{port}");
    }
    // What its image is to be made of is what the machine has: nothing but libc and what comes with every Debian.
    let libraries = output(Command::new("ldd").arg(binary("ferrule-cloud")));
    for line in libraries.lines() {
        let name = line.trim().rsplit('/').next().unwrap_or(line).trim();
        let base = ["linux-vdso.so", "ld-linux", "libc.so", "libm.so", "libgcc_s.so", "libstdc++.so"];
        assert!(base.iter().any(|each| line.trim().starts_with(each) || name.starts_with(each)), "{line}");
    }
}
