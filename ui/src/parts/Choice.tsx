import { useId } from "preact/hooks";

interface Props<Option extends string> {
  label: string;
  options: readonly Option[];
  chosen: Option;
  onChoose: (option: Option) => void;
  /** A class for an option. */
  look?: (option: Option) => string;
}

/** One of a few, side by side. */
export function Choice<Option extends string>({ label, options, chosen, onChoose, look }: Props<Option>) {
  const name = useId();
  return (
    <fieldset class="choice">
      <legend class="hidden">{label}</legend>
      {options.map((option) => (
        <label key={option} class={look?.(option)}>
          <input type="radio" name={name} checked={option === chosen} onChange={() => onChoose(option)} />
          <span>{option}</span>
        </label>
      ))}
    </fieldset>
  );
}
