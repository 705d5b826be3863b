//! Plays one scenario folder or text file: `cargo run --example play -- PATH [--text]`.
fn main() {
    let path = std::env::args().nth(1).unwrap_or_default();
    let p = std::path::Path::new(&path);
    let scenario = if p.is_dir() {
        stead_sim::scenario::folder::read(p).unwrap_or_else(|e| panic!("{e}"))
    } else {
        let text = std::fs::read_to_string(p).unwrap_or_default();
        stead_sim::scenario::text::read(stead_sim::scenario::text::split(&text).0)
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let story = stead_sim::cluster::play(&scenario).unwrap_or_else(|e| panic!("{e}"));
    if std::env::args().any(|a| a == "--text") {
        print!("{}", story.to_text());
    } else {
        println!("{}", story.to_json());
    }
}
