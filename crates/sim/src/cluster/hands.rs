//! What scenarios of our own can do beyond the commands that they share with others: faults of links and processes, rules, profiles.

use super::config::Edit;
use super::world::World;
use crate::scenario::Command;
use crate::scenario::command::Part;
use std::time::Duration;
use stead_model::NodeName;
use stead_model::ha_cfg::HaRule;

impl World {
    /// Carries such a command out.
    pub fn play_fault(&mut self, command: &Command) {
        match command {
            Command::Pause { part, node, time } => self.pause_command(*part, node, *time),
            Command::Kill { part, node, time } => self.kill_command(*part, node, *time),
            Command::Cut { from, to, both } => self.cut_command(from, to, *both),
            Command::Split(side) => {
                let names: Vec<String> = side.iter().map(ToString::to_string).collect();
                self.tell_command(None, format!("split {}", names.join(",")));
                let side = side.iter().filter_map(|n| self.index(n)).collect();
                if let Some(scene) = &mut self.scene {
                    scene.cables.side = side;
                }
                self.plug();
            }
            Command::Mend => {
                self.tell_command(None, "mend".to_owned());
                (self.loss, self.late, self.twice) = (0, 0, 0);
                if let Some(scene) = &mut self.scene {
                    scene.cables.cut.clear();
                    scene.cables.side.clear();
                }
                self.plug();
            }
            Command::Stall(time) => {
                self.tell_command(None, format!("stall {}", time.as_secs_f64()));
                self.stalls = self.now + *time;
            }
            Command::Weather { loss, late, twice } => {
                self.tell_command(None, format!("weather {loss} {late} {twice}"));
                (self.loss, self.late, self.twice) = (*loss, *late, *twice);
            }
            Command::Rule(rule) => self.rule_command(&rule.id, Some(rule)),
            Command::Unrule(id) => self.rule_command(id, None),
            Command::Storage(name, disks) => {
                self.tell_command(None, format!("storage {name} {disks}"));
                if let Some(node) = self.index(name) {
                    self.set_disks(node, *disks);
                }
            }
            Command::Profile(profile) => {
                self.tell_command(None, format!("profile {profile}"));
                self.edit(Edit::Profile(*profile));
            }
            Command::ConfirmOff(node) => {
                self.tell_command(None, format!("confirm-off {node}"));
                self.edit(Edit::Off(node.clone()));
            }
            _ => {}
        }
    }

    fn pause_command(&mut self, part: Part, name: &NodeName, time: Duration) {
        let Some(node) = self.index(name) else { return };
        self.tell_command(None, format!("{name}: {part} stands still for {} s", time.as_secs_f64()));
        self.pause(part, node, self.now + time);
    }

    fn kill_command(&mut self, part: Part, name: &NodeName, time: Duration) {
        let Some(node) = self.index(name) else { return };
        let after = time.as_secs_f64();
        self.tell_command(None, format!("{name}: {part} is killed, and started again after {after} s"));
        self.kill(part, node, time);
    }

    fn cut_command(&mut self, from: &NodeName, to: &NodeName, both: bool) {
        let (Some(a), Some(b)) = (self.index(from), self.index(to)) else { return };
        self.tell_command(None, format!("cut {from} {to}{}", if both { "" } else { " one-way" }));
        if let Some(scene) = &mut self.scene {
            scene.cables.cut.insert((a, b));
            if both {
                scene.cables.cut.insert((b, a));
            }
        }
        self.plug();
    }

    /// Makes a rule, or takes it back.
    fn rule_command(&mut self, id: &str, rule: Option<&HaRule>) {
        self.tell_command(None, format!("{} {id}", if rule.is_some() { "rule" } else { "unrule" }));
        // As wanted last, by those who wait for a leader too.
        let waiting =
            self.edits.iter().rev().find_map(|e| if let Edit::Rules(r) = e { Some(r.clone()) } else { None });
        let mut rules = waiting.unwrap_or_else(|| self.store.newest().config.rules.clone());
        rules.retain(|r| r.id != id);
        rules.extend(rule.cloned());
        self.edit(Edit::Rules(rules));
    }
}
